"""Whole runs, a few steps each, of every kind of embedding: trained, measured, exported, read back."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from embedtrain.config.compose import compose_config
from embedtrain.config.validate import validate
from embedtrain.export.load import load_encoder
from embedtrain.run import Run
from embedtrain.training.job import run_training
from tests.helpers.runs import tiny_config, tiny_settings

FEW = ("training.max_steps=2", "evaluation.before=false", "export.num_probes=2")
KINDS = {
    "token vectors": ["pooling=multi_vector", "pooling.dim=8", "loss=colbert"],
    "three heads": [
        "pooling=cls",
        "pooling@encoder.views.sparse=bge_m3_sparse",
        "pooling@encoder.views.multi_vector=bge_m3_multi_vector",
        "encoder.views.multi_vector.dim=32",
        "loss=bge_m3",
    ],
    "sparse": [
        "pooling=splade",
        "loss=weighted_sum",
        "loss@loss.losses.contrast=infonce",
        "loss@loss.losses.flops=flops",
    ],
    "Gaussians": ["pooling=gaussian", "pooling.dim=8", "loss=gaussian"],
}
EVALUATE = [
    "+evaluation.evaluators.pairs._target_=embedtrain.evaluation.retrieval.PairsEvaluator",
    "+evaluation.evaluators.pairs.pairs._target_=embedtrain.data.sources.JsonLines",
]


def train(config):
    torch.set_num_threads(1)
    AcceleratorState._reset_state()
    run = Run.start(config)
    try:
        assert run_training(config, run) == 0
    finally:
        run._lock.close()


@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_this_kind_is_trained_measured_and_exported(name, tmp_path):
    config = tiny_config(
        tmp_path, *KINDS[name], *FEW, *EVALUATE, f"+evaluation.evaluators.pairs.pairs.path={tmp_path / 'pairs.jsonl'}"
    )
    train(config)
    results = json.loads((tmp_path / "run" / "evaluation" / "after.json").read_text())
    assert 0 < results["pairs"]["metrics"]["ndcg@10"] <= 1
    loaded = load_encoder(tmp_path / "run")
    made = loaded.encode_embeddings(["where is the cat", "a stone"], views=True)
    assert set(made.views) == set(config["encoder"]["views"])
    assert all(tensor.isfinite().all() for tensor in made.tensors())


@pytest.mark.parametrize("pooling", ["mean", "multi_vector"])
def test_a_run_on_documents_in_chunks(pooling, tmp_path):
    rows = [
        {"query": f"what of {i}", "chunks": [f"red {i}", f"blue stone {i}", f"{i} sky"], "answer": i % 3}
        for i in range(9)
    ]
    settings = [override for override in tiny_settings(tmp_path) if not override.startswith("data=")]
    settings = [override for override in settings if not override.startswith("data.path")]
    (tmp_path / "chunks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    composed = compose_config(
        [
            *settings,
            "source@data.sources.chunks=chunked",
            f"data.sources.chunks.path={tmp_path / 'chunks.jsonl'}",
            f"pooling={pooling}",
            "loss=insent",
            "evaluation.after=false",
            *FEW,
        ]
    )
    validate(composed.config, composed.problems)
    train(composed.config)
    assert len(load_encoder(tmp_path / "run").encode_chunks([["a", "b"]])) == 2
