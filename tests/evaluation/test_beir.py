import gzip
import re

import pytest

from embedtrain.errors import DataError
from embedtrain.evaluation.beir import read_beir

CORPUS = """{"_id": "d1", "title": "A title", "text": "and a text"}
{"_id": "d2", "title": "", "text": "no title"}
{"_id": "d3", "text": "title left out"}
"""
QUERIES = """{"_id": "q1", "text": "first"}
{"_id": "q2", "text": "second"}
{"_id": "q3", "text": "never judged"}
{"_id": "q4", "text": "judged at 0"}
"""
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t1\nq4\td1\t0\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    (tmp_path / "queries.jsonl").write_text(QUERIES)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    return tmp_path


def test_folder_becomes_texts_and_judgements(folder):
    data = read_beir(folder)
    assert data.name == f"{folder.name}/test"
    assert data.documents == {"d1": "A title and a text", "d2": "no title", "d3": "title left out"}
    assert data.judgements == {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 1}}


def test_queries_that_nothing_answers_are_left_out_and_counted(folder):
    data = read_beir(folder)
    assert list(data.queries) == ["q1", "q2"]
    assert data.num_unjudged == 2


def test_gzipped_files_read_the_same(folder):
    plain = read_beir(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        path = folder / name
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_beir(folder) == plain


def test_windows_line_ends_and_blank_lines_do_no_harm(folder):
    plain = read_beir(folder)
    path = folder / "qrels" / "test.tsv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_beir(folder) == plain


def test_number_ids_are_texts(folder):
    (folder / "corpus.jsonl").write_text('{"_id": 7, "text": "seven"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t7\t1\n")
    assert read_beir(folder).judgements == {"q1": {"7": 1}}


def test_own_document_is_that_with_the_same_id_and_words(folder):
    (folder / "corpus.jsonl").write_text(
        '{"_id": "q1", "title": "A title", "text": "first"}\n'  # the query itself
        '{"_id": "q2", "text": "the number is the same by accident"}\n'
        '{"_id": "q3", "text": "never judged"}\n'
        '{"_id": "d1", "text": "an answer"}\n'
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\nq3\tq3\t1\n")
    assert read_beir(folder).own_documents == {"q1": "q1"}  # q3's is its judged answer


BAD = {
    "qrels/test.tsv:3: document 'd9' is not in corpus.jsonl": ("qrels/test.tsv", "h\th\th\nq1\td1\t1\nq1\td9\t1\n"),
    "qrels/test.tsv:2: query 'q9' is not in queries.jsonl": ("qrels/test.tsv", "h\th\th\nq9\td1\t1\n"),
    "qrels/test.tsv:2: expected query id, document id and an integer": ("qrels/test.tsv", "h\th\th\nq1 d1 1\n"),
    "qrels/test.tsv:2: expected query id, document id and an integer grade": (
        "qrels/test.tsv",
        "h\th\th\nq1\td1\t0.5\n",
    ),
    "qrels/test.tsv:1: expected the header": ("qrels/test.tsv", "q1\td1\t1\nq2\td3\t1\n"),
    "qrels/test.tsv:3: ('q1', 'd1') was judged 1 before and 2": ("qrels/test.tsv", "h\th\th\nq1\td1\t1\nq1\td1\t2\n"),
    "qrels/test.tsv: no document is judged relevant": ("qrels/test.tsv", "h\th\th\nq1\td1\t0\n"),
    "qrels/test.tsv: the file is empty": ("qrels/test.tsv", ""),
    "corpus.jsonl: the file is empty": ("corpus.jsonl", "\n\n"),
    "corpus.jsonl:4: not JSON": ("corpus.jsonl", CORPUS + '{"_id": "d4", "te\n'),
    "corpus.jsonl:4: \"_id\" 'd1' is already used at": ("corpus.jsonl", CORPUS + '{"_id": "d1", "text": ""}\n'),
    'corpus.jsonl:4: expected a string under "text", got None (keys: _id, body)': (
        "corpus.jsonl",
        CORPUS + '{"_id": "d4", "body": "x"}\n',
    ),
    'corpus.jsonl:4: expected a string under "title", got 3': (
        "corpus.jsonl",
        CORPUS + '{"_id": "d4", "title": 3, "text": "x"}\n',
    ),
    'queries.jsonl:1: expected an object with an "_id"': ("queries.jsonl", '["q1", "first"]\n'),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_named_with_file_line_and_key(folder, message):
    name, content = BAD[message]
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_beir(folder)


def test_other_encodings_are_refused(folder):
    (folder / "corpus.jsonl").write_bytes('{"_id": "d1", "text": "Köln"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"corpus.jsonl: not UTF-8"):
        read_beir(folder)


def test_gzip_cut_short_is_refused(folder):
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(CORPUS.encode())[:-6])
    with pytest.raises(DataError, match=r"corpus.jsonl.gz: not a whole gzip file"):
        read_beir(folder)


def test_missing_split_lists_those_there_are(folder):
    with pytest.raises(DataError, match=r"dev.tsv: no such file .* The splits there are: test"):
        read_beir(folder, "dev")


def test_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"no such folder. Expected a BEIR folder"):
        read_beir(tmp_path / "nowhere")
