"""A stronger embedding model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.data.prompts import PLACEHOLDER, Prompts
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export.load import load_encoder, local_folder
from embedtrain.mining.records import MiningData
from embedtrain.mining.search.pairs import inner_products_of_pairs
from embedtrain.mining.vectors import embed


class BiEncoder:
    """Scores each pair by the inner product of another model's embeddings: a larger model judges what a smaller one found.

    Far cheaper than a cross-encoder, since each text is embedded once and kept in a store on disk, and as comparable as the
    search's own scores: the teachers of NV-Retriever (arXiv:2407.15831) are such models. Only texts that are in some pair
    are embedded, shared out among all ranks. The weights are in memory while it scores.

    model     a folder, a run directory, package://<package>/<folder>, or a name on the model hub
    prompts   {query: ..., document: ...} put before its texts; null: as the model's folder says. Instructions of the queries
              are read where the query's prompt has a place for them
    dtype     numbers of its arithmetic: float32 | bfloat16
    store     folder of embeddings, found again by their content
    numbers   of the store: float32 | float16, half the size and scores right to about 1e-3
    """

    def __init__(
        self,
        *,
        model: str,
        prompts: Mapping[str, str] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        store: str = "runs/embeddings",
        numbers: Literal["float32", "float16"] = "float32",
    ) -> None:
        unknown = set(prompts or {}) - {"query", "document"}
        if unknown:
            raise ConfigError(f"miner.rescorer.prompts: expected query and document, got {', '.join(sorted(unknown))}.")
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"miner.rescorer.dtype={dtype}: expected float32 or bfloat16.")
        if numbers not in ("float32", "float16"):
            raise ConfigError(f"miner.rescorer.numbers={numbers}: expected float32 or float16.")
        self.name = model
        self.folder = local_folder(model)
        self.prompts = prompts
        self.dtype = dtype
        self.store = Path(store).expanduser()
        self.numbers = numbers
        self._facts: dict[str, object] = {}

    def score(self, data: MiningData, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32, CPU: inner products of n pairs. Every rank calls it, once per mining.

        Raises ConfigError for a model of several vectors per text.
        """
        encoder = self._load()
        reads = PLACEHOLDER in encoder.tokenizer.prompts.template("query")
        asked, answers = (_of_all_ranks(numbers) for numbers in (queries, documents))
        texts = _texts(data, asked, answers, reads_instructions=reads)
        embedded = embed(encoder, texts, root=self.store, numbers=self.numbers, show_progress=True)
        self._facts = {
            "kind": "bi_encoder",
            "model": self.name,
            "dtype": self.dtype,
            "reads_instructions": reads,
            **embedded.facts(),
        }
        return inner_products_of_pairs(
            embedded.queries,
            embedded.documents,
            np.searchsorted(asked, queries),
            np.searchsorted(answers, documents),
            distributed.device(),
        )

    def facts(self) -> dict[str, object]:
        """Of the last `score`, all ranks together."""
        return self._facts

    def _load(self) -> Encoder:
        encoder = load_encoder(self.folder).requires_grad_(False).eval().to(distributed.device())
        if self.dtype != "float32":
            encoder.encode_dtype = getattr(torch, self.dtype)
        if self.prompts is not None:
            own = encoder.tokenizer.prompts
            templates = {**own.templates, **self.prompts}
            encoder.tokenizer.prompts = Prompts(
                query=templates["query"], document=templates["document"], pool_prompt=own.pool_prompt
            )
        return encoder


def _of_all_ranks(numbers: Ints) -> Ints:
    """The distinct ones, ascending."""
    return np.unique(np.concatenate(distributed.gather_objects(np.unique(numbers))))


def _texts(data: MiningData, queries: Ints, documents: Ints, *, reads_instructions: bool) -> MiningData:
    """These texts of `data` and nothing of what is known about them."""

    def chosen(texts: Sequence[str], numbers: Ints) -> list[str]:
        return [texts[number] for number in numbers.tolist()]

    none = np.zeros(0, dtype=np.int64)
    return MiningData(
        source=data.source,
        queries=chosen(data.queries, queries),
        instructions=[data.instructions[n] if reads_instructions else None for n in queries.tolist()],
        documents=chosen(data.documents, documents),
        num_searched=documents.size,
        positives=none,
        positive_offsets=np.zeros(queries.size + 1, dtype=np.int64),
        query_of_row=none,
        query_labels=none,
        document_labels=none,
        documents_read=documents.size,
    )
