import gzip
import json
import logging
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedtrain.data.sources import BeirFolder, Csv, HuggingFaceDataset, JsonLines, PairsFile, Parquet
from embedtrain.errors import ConfigError, DataError
from tests.data.helpers import SHARED, write_jsonl

ROWS = [
    {"query": "q0", "positives": ["p0", "p00"], "negatives": ["n0"]},
    {"query": "naïve 東京", "positives": ["p1\nsecond line"], "negatives": ["n1", "n2"]},
]


def facts(source) -> list[tuple]:
    return [(e.query, e.positives, e.negatives, e.scores, e.instruction) for e in source]


EXPECTED = [(r["query"], tuple(r["positives"]), tuple(r["negatives"]), None, None) for r in ROWS]


def save(kind: str, folder: Path) -> str:
    """ROWS in a format."""
    if kind == "jsonl":
        return write_jsonl(folder / "rows.jsonl", ROWS)
    if kind == "jsonl.gz":
        path = folder / "rows.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))
        return str(path)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
        return str(folder / "rows.parquet")
    if kind == "parquet folder":
        (folder / "parts").mkdir()
        for number, row in enumerate(ROWS):
            pq.write_table(pa.Table.from_pylist([row]), folder / f"parts/{number}.parquet")
        return str(folder / "parts")
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "parquet folder", "saved dataset"])
def test_every_format_gives_the_same_rows(kind, tmp_path):
    source = PairsFile(path=save(kind, tmp_path))
    assert facts(source) == EXPECTED
    assert facts([source[1], source[0]]) == EXPECTED[::-1]
    assert len(source) == 2
    assert source.fingerprint == JsonLines(path=save("jsonl", tmp_path)).fingerprint
    assert facts(pickle.loads(pickle.dumps(source))) == EXPECTED
    with pytest.raises(IndexError):
        source[2]


def test_the_mapping_and_the_first_row_are_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "embedtrain"):
        assert len(JsonLines(path=save("jsonl", tmp_path)).index) == 2
    assert "2 rows. query <- query; positives <- positives; negatives <- negatives." in caplog.text
    assert "First row: query 'q0'; 2 positive(s), first 'p0'; 1 hard negative(s), first 'n0'" in caplog.text


def test_flagembedding_rows_work(tmp_path):
    rows = [
        {"query": "q", "pos": ["p"], "neg": ["a", "b"], "pos_scores": [3.5], "neg_scores": [1, 0], "prompt": "do: "},
        {"query": "r", "pos": ["p"]},
    ]
    assert facts(JsonLines(path=write_jsonl(tmp_path / "f.jsonl", rows))) == [
        ("q", ("p",), ("a", "b"), (3.5, 1.0, 0.0), "do: "),
        ("r", ("p",), (), None, None),
    ]


def test_limit_and_instruction(tmp_path):
    source = JsonLines(path=save("jsonl", tmp_path), limit=1, instruction="do")
    assert len(source) == len(source.index) == 1
    assert [e.instruction for e in source] == ["do"]


def test_the_two_parts_of_held_out_share_no_text(tmp_path):
    rows = [{"query": f"q{n // 2}", "positive": f"p{n % 25}"} for n in range(40)] + [
        {"query": f"single {n}", "positive": f"only {n}"} for n in range(60)
    ]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    train, dev = (JsonLines(path=path, held_out={"share": 0.2, "part": part}) for part in ("train", "dev"))
    assert len(train) + len(dev) == 100
    assert 10 <= len(dev) <= 20
    texts = [{t for e in side for t in (e.query, *e.positives)} for side in (train, dev)]
    assert not texts[0] & texts[1]
    assert facts(dev) == facts([dev[n] for n in range(len(dev))])
    with pytest.raises(ConfigError, match=r"held_out=.*expected"):
        JsonLines(path=path, held_out={"share": 0.1, "part": "test"})


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved dataset"])
def test_every_format_reads_a_class(kind, tmp_path):
    rows = [{"query": f"q{n}", "positive": f"p{n}", "intent": n % 2} for n in range(4)]
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text("query,positive,intent\n" + "".join(f"q{n},p{n},{n % 2}\n" for n in range(4)), "utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        write_jsonl(path, rows)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    source = PairsFile(path=str(path), columns={"query": "query", "positives": "positive", "label": "intent"})
    assert [row.label for row in source] == ["0", "1", "0", "1"]
    assert len(set(source.index.label_ids.tolist())) == 2
    unlabelled = PairsFile(path=str(path), columns={"query": "query", "positives": "positive"})
    assert unlabelled.fingerprint != source.fingerprint


def test_quotation_marks_are_syntax_in_csv_and_text_in_tsv(tmp_path):
    (tmp_path / "f.csv").write_text('query,answer\n"a, ""b""",c\n', "utf-8")
    (tmp_path / "f.tsv").write_text('query\tanswer\n"a" b\t"c\n', "utf-8")
    assert facts(Csv(path=str(tmp_path / "f.csv")))[0][:2] == ('a, "b"', ("c",))
    assert facts(Csv(path=str(tmp_path / "f.tsv")))[0][:2] == ('"a" b', ('"c',))
    (tmp_path / "f.tsv").write_text("query\tanswer\na\tb\tc\n", "utf-8")
    with pytest.raises(DataError, match=r"line 2: 3 cells.* or write a \.csv"):
        len(Csv(path=str(tmp_path / "f.tsv")))


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"f\.jsonl is empty"),
        (b"\n  \n", r"f\.jsonl has only blank lines"),
        (b'{"query": "q", "pos": "p"}\n\n{"query": "q", "pos": ', r"f\.jsonl, line 3, column \d+: broken JSON"),
        (
            b'{"query": "q", "pos": "p"}\n{"query": "caf\xe9", "pos": "p"}\n',
            r"f\.jsonl, line 2: byte 14 .* is not UTF-8",
        ),
        (b'["q", "p"]\n', r"f\.jsonl, line 1: JSON list"),
        (b'{"query": "q", "pos": "p"}\n{"query": "q"}\n', r"f\.jsonl, line 2: the columns are 'query'; none is known"),
        (b'{"query": "q", "pos": []}\n', r"f\.jsonl:1: the row has no positive"),
        (b'{"query": "q", "pos": ["p"], "neg": [""]}\n', r"f\.jsonl:1: negatives\[0\] is empty"),
        (b'{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}\n', r"f\.jsonl:1: 2 scores for 1 positives"),
        (b'{"query": "q", "pos": 5}\n', r"f\.jsonl:1: pos holds int '5'"),
    ],
)
def test_bad_json_lines_are_named(content, message, tmp_path):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        _ = JsonLines(path=str(tmp_path / "f.jsonl")).index


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(b'\xef\xbb\xbf{"query": "q", "pos": "p"}')
    assert facts(JsonLines(path=str(tmp_path / "f.jsonl"))) == [("q", ("p",), (), None, None)]


def test_a_mapped_key_that_no_row_has_is_a_mistake(tmp_path):
    path = write_jsonl(tmp_path / "f.jsonl", [{"a": "q", "b": "p"}, {"a": "q2", "b": "p", "c": "n"}])
    columns = {"query": "a", "positives": "b", "negatives": "c"}
    assert facts(JsonLines(path=path, columns=columns))[1][2] == ("n",)
    with pytest.raises(DataError, match=r"there is no column 'd'. The columns are 'a', 'b', 'c'"):
        _ = JsonLines(path=path, columns={**columns, "negatives": "d"}).index


def test_a_cut_gzip_file_is_named(tmp_path):
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "q", "pos": "p"}\n' * 100)[:-10])
    with pytest.raises(DataError, match="cannot be unpacked"):
        _ = JsonLines(path=str(path)).index


def test_csv_cells_may_hold_commas_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text('query,positive,negative_1,negative_2,scores\n"a, ""b""","x\ny",n,,0.5\n', "utf-8")
    with pytest.raises(DataError, match=r"f\.csv:3: 1 scores for 1 positives and 1 negatives"):
        _ = Csv(path=str(path)).index
    columns = {"query": "query", "positives": "positive", "negatives": ["negative_1", "negative_2"]}
    source = Csv(path=str(path), columns=columns)
    assert facts(source) == [('a, "b"', ("x\ny",), ("n",), None, None)]
    assert source[0].row == "f.csv:3"


def test_a_number_in_a_csv_text_column_stays_text(tmp_path):
    (tmp_path / "f.tsv").write_text("query\tanswer\n1\t007\n", "utf-8")
    assert facts(Csv(path=str(tmp_path / "f.tsv"))) == [("1", ("007",), (), None, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"query,answer\n", "has no rows"),
        (b"query,answer\na,b,c\n", "line 2: 3 cells, but the first line names 2"),
        (b"query,query\na,b\n", "two columns have the same name"),
        (b"query,answer\na,b\n\xe9,c\n", "line 3: byte 0 .* is not UTF-8"),
        (b"query,answer\na,\n", r"f\.csv:2: the row has no positive"),
        (b"query,answer,scores\na,b,high\n", r"f\.csv:2: scores is 'high'. Expected a number"),
        (b'query,answer\na,"b\n', "line 2: .*Correct the quotes"),
        (b"left,right\na,b\n", "the columns are 'left', 'right'; none is known to be the query"),
    ],
)
def test_bad_csv_is_named(content, message, tmp_path):
    (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        _ = Csv(path=str(tmp_path / "f.csv")).index


def test_bad_parquet_is_named(tmp_path):
    (tmp_path / "f.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="is not a Parquet file that can be read"):
        _ = Parquet(path=str(tmp_path / "f.parquet")).index
    pq.write_table(pa.table({"query": ["q", "r"], "pos": ["p", None]}), tmp_path / "g.parquet")
    with pytest.raises(DataError, match=r"g\.parquet: row 2: the row has no positive"):
        _ = Parquet(path=str(tmp_path / "g.parquet")).index


def test_splits_of_a_saved_data_set_are_listed(tmp_path):
    import datasets

    datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    assert facts(HuggingFaceDataset(path=str(tmp_path / "saved"), split="dev")) == EXPECTED
    with pytest.raises(DataError, match=r"has no split 'train'. Its splits are dev"):
        _ = HuggingFaceDataset(path=str(tmp_path / "saved")).index


def test_a_data_set_that_cannot_be_had_is_named(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"owner/name/train could not be loaded: Couldn't reach the Hub.*save_to_disk"):
        _ = PairsFile(path="owner/name").index


@pytest.mark.parametrize("path", ["nothing.jsonl", "nothing.csv", "nothing.parquet", "nothing", "a/b/c"])
def test_a_missing_file_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{path} does not exist"):
        PairsFile(path=path)


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    (tmp_path / "rows.xml").write_text("x")
    with pytest.raises(DataError, match=r"of no known format. Expected a file ending in .jsonl, .jsonl.gz, .csv"):
        PairsFile(path=str(tmp_path / "rows.xml"))


# ------------------------------------------------------------------------------------------------- BEIR


def beir(folder: Path, qrels: str = "q1\td2\t1\nq1\td1\t2\nq2\td1\t0\n") -> str:
    write_jsonl(folder / "corpus.jsonl", [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"}])
    write_jsonl(folder / "queries.jsonl", [{"_id": "q2", "text": "second"}, {"_id": "q1", "text": "first"}])
    (folder / "qrels").mkdir()
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return str(folder)


def test_a_beir_query_brings_all_its_answers(tmp_path):
    source = PairsFile(path=beir(tmp_path))
    assert facts(source) == [("first", ("two", "T one"), (), None, None)]
    assert facts(pickle.loads(pickle.dumps(source))) == facts(source)
    with pytest.raises(ConfigError, match="is a BEIR folder, whose keys are fixed"):
        PairsFile(path=str(tmp_path), columns={"query": "q"})


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\td9\t1\n", r"corpus\.jsonl lacks 1 of the 1 ids that the judgements name, 'd9'"),
        ("q9\td1\t1\n", r"queries\.jsonl lacks 1 of the 1 ids"),
        ("q1\td1\n", r"train\.tsv, line 2: 'q1<TAB>d1'. Expected query-id"),
        ("q2\td1\t0\n", "has no rows"),
    ],
)
def test_bad_judgements_are_named(qrels, message, tmp_path):
    with pytest.raises(DataError, match=message):
        _ = BeirFolder(path=beir(tmp_path, qrels)).index


def test_splits_of_a_beir_folder_are_listed(tmp_path):
    with pytest.raises(DataError, match=r"qrels/test\.tsv does not exist .*the splits there are: train"):
        BeirFolder(path=beir(tmp_path), split="test")


@pytest.mark.parametrize(
    ("name", "split", "queries", "judged"),
    [("ir-scifact", "train", 809, 919), ("ir-scifact", "test", 300, 339), ("faq-stackfaq", "train", 874, 5027)],
)
def test_real_beir_folders_are_read_whole(name, split, queries, judged):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the data set {name} is not beside the repository")
    index = BeirFolder(path=str(SHARED / name), split=split).index
    assert (len(index), index.positive_ids.size) == (queries, judged)


def test_real_rows_with_scores_and_a_hundred_negatives_are_read():
    path = SHARED / "pairs-nq-toy" / "train.jsonl"
    if not path.is_file():
        pytest.skip("the data set pairs-nq-toy is not beside the repository")
    source = JsonLines(path=str(path))
    index = source.index
    assert len(index) == 10
    assert all(example.scores is not None and example.instruction is not None for example in source)
    assert index.num_negatives.max() == 100
