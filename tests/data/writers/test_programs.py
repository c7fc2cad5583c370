"""The programs that the formats are for take the files: `datasets` as all of them load it, and a step of training."""

from __future__ import annotations

import csv
import json

import datasets
import pytest

from tests.data.writers.helpers import row, write
from tests.helpers.models import tiny_model_dir

ROWS = [
    row("first", ["p1", "p2"], ["n1", "n2"], instruction="do"),
    row("second\nline", ["東京"], ["n1", '"n3"']),
    row("third", ["p4"], []),
]


@pytest.fixture
def load(tmp_path):
    def load(path, kind):
        return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    return load


def test_flag_embedding_loads_its_rows(tmp_path, load):
    data = load(write("flag_embedding", tmp_path, ROWS).files[0], "json")
    assert data.column_names == ["prompt", "query", "pos", "neg", "pos_scores", "neg_scores"]
    assert [(r["prompt"], r["query"], len(r["neg"])) for r in data] == [("do", "first", 2), ("", "second\nline", 2)]
    assert [(len(r["pos_scores"]), len(r["neg_scores"])) for r in data] == [(2, 2), (1, 2)]


def test_flag_embedding_has_no_prompt_where_no_row_brings_one(tmp_path, load):
    data = load(write("flag_embedding", tmp_path, ROWS[1:]).files[0], "json")
    assert "prompt" not in data.column_names


def test_tevatron_finds_every_document_that_a_row_names(tmp_path, load):
    corpus_file, train_file = write("tevatron", tmp_path, ROWS).files
    corpus, train = load(corpus_file, "json"), load(train_file, "json")
    text = dict(zip(corpus["docid"], corpus["text"], strict=True))
    assert [(r["query_text"], [text[d] for d in r["positive_document_ids"]]) for r in train] == [
        ("first", ["p1", "p2"]),
        ("second\nline", ["東京"]),
    ]
    assert [[text[d] for d in r["negative_document_ids"]] for r in train] == [["n1", "n2"], ["n1", '"n3"']]


def test_beir_finds_every_document_that_a_judgement_names(tmp_path):
    """As its loader reads: JSON lines by `_id`, and judgements behind a header."""
    write("beir", tmp_path, ROWS)
    folder = tmp_path / "rows"
    corpus, queries = (
        {line["_id"]: line["text"] for line in map(json.loads, (folder / f"{name}.jsonl").open(encoding="utf-8"))}
        for name in ("corpus", "queries")
    )
    with (folder / "qrels" / "train.tsv").open(encoding="utf-8") as file:
        judgements = list(csv.reader(file, delimiter="\t"))[1:]
    assert [(queries[q], corpus[d], int(grade)) for q, d, grade in judgements] == [
        ("first", "p1", 1),
        ("first", "p2", 1),
        ("second\nline", "東京", 1),
        ("third", "p4", 1),
    ]
    assert set(corpus.values()) == {"p1", "p2", "p4", "n1", "n2", '"n3"', "東京"}


def options(folder):
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_trains_on_the_tables(tmp_path, load):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MarginMSELoss, MultipleNegativesRankingLoss

    model = SentenceTransformer(tiny_model_dir("bert", tmp_path), device="cpu")
    arguments = SentenceTransformerTrainingArguments(**options(tmp_path))

    def step(data, loss):
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss(model))
        return trainer.train().training_loss

    tables = {
        kind: load(write(kind, tmp_path, ROWS[:2], name=kind).files[0], "parquet") for kind in ("n_tuple", "triplet")
    }
    differences = tables["n_tuple"].map(lambda r: {"scores": [r["scores"][0] - s for s in r["scores"][1:]]})
    assert step(tables["n_tuple"], MultipleNegativesRankingLoss) > 0
    assert step(tables["triplet"], MultipleNegativesRankingLoss) > 0
    assert step(differences, MarginMSELoss) > 0  # its labels are differences of scores


@pytest.mark.filterwarnings("ignore")
def test_rerankers_train_on_the_lists(tmp_path, load):
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    data = load(write("labeled_list", tmp_path, ROWS[:2]).files[0], "parquet")
    model = CrossEncoder(tiny_model_dir("bert", tmp_path), num_labels=1, device="cpu")
    arguments = CrossEncoderTrainingArguments(**options(tmp_path))
    assert (
        CrossEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=LambdaLoss(model))
        .train()
        .training_loss
        > 0
    )
