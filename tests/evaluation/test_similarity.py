import gzip
import json
import re

import pytest
import torch
from scipy import stats

from embedtrain.errors import DataError, TrainingError
from embedtrain.evaluation.similarity import SimilarityEvaluator, read_similarity
from tests.evaluation.stand_ins import MiniLM, WordEncoder, shared_data
from tests.helpers.ranks import run_ranks

PAIRS = [("a cat sat", "a cat sat down", 5.0), ("a cat", "dogs run", 0.5), ("one two", "two one", 4), ("x y", "x z", 2)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in PAIRS))
    return file


def test_correlations_are_those_of_the_cosine(path):
    encoder = WordEncoder()
    result = SimilarityEvaluator(path=path)(encoder)
    options = {"role": "query", "source": None, "instructions": None, "show_progress": False}
    cosine = [float(encoder.encode([a], **options)[0] @ encoder.encode([b], **options)[0]) for a, b, _ in PAIRS]
    gold = [score for *_, score in PAIRS]
    assert result.metrics["spearman"] == pytest.approx(stats.spearmanr(cosine, gold).statistic)
    assert result.metrics["pearson"] == pytest.approx(stats.pearsonr(cosine, gold).statistic, abs=1e-5)
    assert result.primary == "spearman"
    assert result.details["num_pairs"] == 4


def test_vectors_need_not_be_of_unit_length(path):
    class Long(WordEncoder):
        def encode(self, texts, **options):
            return super().encode(texts, **options) * torch.arange(1, len(texts) + 1)[:, None]

    assert SimilarityEvaluator(path=path)(Long()).metrics == pytest.approx(
        SimilarityEvaluator(path=path)(WordEncoder()).metrics
    )


def test_both_texts_get_the_same_prompt_and_no_text_is_encoded_twice(path):
    encoder = WordEncoder()
    SimilarityEvaluator(path=path, role="document", source="sts", instruction="alike?")(encoder)
    (call,) = encoder.calls
    assert call["role"] == "document"
    assert call["source"] == "sts"
    assert set(call["instructions"]) == {"alike?"}
    assert len(call["texts"]) == len(set(call["texts"])) == 8


def test_collapsed_encoder_scores_zero(path):
    class Constant(WordEncoder):
        def encode(self, texts, **options):
            return torch.ones(len(texts), 4)

    assert SimilarityEvaluator(path=path)(Constant()).metrics == {"spearman": 0.0, "pearson": 0.0}


def test_broken_embeddings_are_an_error(path):
    class Broken(WordEncoder):
        def encode(self, texts, **options):
            vectors = super().encode(texts, **options)
            vectors[2, 1] = float("nan")
            return vectors

    with pytest.raises(TrainingError, match="1 of 8 texts have an embedding that is not finite"):
        SimilarityEvaluator(path=path)(Broken())


def evaluate(path):
    return SimilarityEvaluator(path=path)(WordEncoder()).metrics


def test_ranks_get_the_result_of_one_process(path):
    assert run_ranks(evaluate, 2, path) == [evaluate(path)] * 2


@pytest.mark.parametrize("name", ["p.tsv", "p.csv", "p.jsonl.gz", "p.tsv.gz"])
def test_formats_read_the_same(tmp_path, name):
    rows = [*PAIRS, ('say "hi"', "hello", 3.0)]
    if "jsonl" in name:
        text = "".join(json.dumps(dict(zip(("sentence1", "sentence2", "score"), r, strict=True))) + "\n" for r in rows)
    elif "tsv" in name:
        text = "".join("\t".join(map(str, row)) + "\n" for row in [("sentence1", "sentence2", "score"), *rows])
    else:
        quoted = [",".join('"{}"'.format(str(cell).replace('"', '""')) for cell in row) for row in rows]
        text = "\n".join(["sentence1,sentence2,score", *quoted])
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    data = read_similarity(tmp_path / name)
    assert list(zip(data.first, data.second, data.scores, strict=True)) == rows


BAD = {
    "p.csv:3: expected a number under 'score', got 'high'": "sentence1,sentence2,score\na,b,1\na,c,high\n",
    "p.csv:2: no value for 'sentence2'": "sentence1,text2,score\na,b,1\n",
    "p.csv:3: no value for 'score'": "sentence1,sentence2,score\na,b,1\na,c\n",
    "expected at least two different scores, got 2 pairs": "sentence1,sentence2,score\na,b,1\na,c,1\n",
    "expected at least two different scores, got 0 pairs": "",
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_named(tmp_path, message):
    (tmp_path / "p.csv").write_text(BAD[message])
    with pytest.raises(DataError, match=re.escape(message)):
        read_similarity(tmp_path / "p.csv")


def test_unknown_format_and_missing_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"expected a .tsv, .csv or .jsonl file"):
        read_similarity(tmp_path / "p.txt")
    with pytest.raises(DataError, match=r"p.tsv: no such file"):
        read_similarity(tmp_path / "p.tsv")


@pytest.mark.slow
def test_minilm_on_stsb_is_as_published():
    result = SimilarityEvaluator(path=shared_data("sts-stsb") / "en" / "test.tsv")(MiniLM())
    assert 100 * result.score == pytest.approx(82.03, abs=0.01)
