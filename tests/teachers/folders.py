"""A tiny teacher as a sentence-transformers folder, and rows for it to read."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from embedtrain.types import TrainingExample
from tests.helpers.models import tiny_model_dir


def teacher_folder(folder: Path, *, seed: int = 0, query: str = "query: ", architecture: str = "bert") -> str:
    """A folder of a random model of 32 dimensions, written by sentence-transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    transformer = Transformer(tiny_model_dir(architecture, folder, seed=seed), max_seq_length=48)
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()],
        prompts={"query": query, "document": ""},
        device="cpu",
    )
    model.save(str(folder / "teacher"))
    return str(folder / "teacher")


ROWS = [
    TrainingExample(query="where is it", positives=("here it is",), negatives=("not here", "elsewhere"), row="a:1"),
    TrainingExample(query="who was that", positives=("a cat", "the cat"), instruction="find it", row="a:2"),
    TrainingExample(query="where is it", positives=("here it is",), negatives=("a cat",), row="a:3"),
]
DOCUMENTS = [text for row in ROWS for text in (*row.positives, *row.negatives)]
