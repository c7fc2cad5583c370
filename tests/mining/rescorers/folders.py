"""Tiny random models as folders: a reranker, and an embedding model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from embedtrain.mining.records import MiningData
from tests.helpers.models import tiny_model_dir

WORDS = "red green blue small large old new round fast slow cat dog bird fish".split()  # noqa: SIM905


def reranker(folder: Path, architecture: str = "bert", *, labels: int = 1, seed: int = 0, **config: Any) -> str:
    """`tiny_model_dir` with a head of `labels` labels."""
    path = tiny_model_dir(architecture, folder, seed=seed, **config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = AutoConfig.from_pretrained(path, num_labels=labels)
        AutoModelForSequenceClassification.from_config(settings).save_pretrained(path)
    return path


def embedding_model(folder: Path, *, prompts: dict[str, str] | None = None, seed: int = 0) -> str:
    """In the layout of sentence-transformers: mean pooling, unit length."""
    path = Path(tiny_model_dir("bert", folder, seed=seed))
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    files = {
        "modules.json": [
            {"idx": int(i), "name": i, "path": place, "type": f"sentence_transformers.models.{kind}"}
            for i, place, kind in modules
        ],
        "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts or {}, "default_prompt_name": None},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    (path / "2_Normalize").mkdir(exist_ok=True)
    return str(path)


def some_data(instructions: Sequence[str | None] | None = None) -> MiningData:
    """Ten queries and 25 documents of many lengths."""
    generator = np.random.default_rng(0)
    queries, documents = (
        [" ".join(generator.choice(WORDS, generator.integers(1, longest))) + f" {i}" for i in range(count)]
        for count, longest in ((10, 6), (25, 30))
    )
    none = np.zeros(0, dtype=np.int64)
    return MiningData(
        source="toy",
        queries=queries,
        instructions=list(instructions or [None] * 10),
        documents=documents,
        num_searched=20,
        positives=none,
        positive_offsets=np.zeros(11, dtype=np.int64),
        query_of_row=np.arange(10),
        query_labels=np.full(10, -1),
        document_labels=np.full(25, -1),
        documents_read=25,
    )


def some_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Fifty, some of them twice, in no order."""
    generator = np.random.default_rng(1)
    return generator.integers(0, 10, 50), generator.integers(0, 25, 50)
