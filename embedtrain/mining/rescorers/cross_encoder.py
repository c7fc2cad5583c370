"""A model that reads query and document together."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.export.load import local_folder
from embedtrain.mining.records import MiningData
from embedtrain.mining.rescorers.pair_store import PairStore, pair_keys
from embedtrain.store.ranks import on_main
from embedtrain.types import text_id

log = logging.getLogger("embedtrain")

# Pairs that are tokenised together: enough to sort by length, and what a kill can cost when there is a store.
PAIRS_AT_ONCE = 4096
INSTRUCTION = "{instruction}"
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class CrossEncoder:
    """Scores each pair by the logit of a reranker: any sequence classifier of transformers with one label.

    Raw logits and never their sigmoid, which presses good candidates together near 1: a margin distilled from that says
    nothing (huggingface/sentence-transformers#3540). A logit may be negative and its zero is where training left it, so
    margins and limits say more of it than shares.

    Each distinct pair is scored once, on the rank that has its query; what the store knows is not scored again. Cost: one
    forward pass per pair, padded to the longest of some pairs of nearly equal length. The weights are in memory while it scores.

    model         a folder, package://<package>/<folder>, or a name on the model hub
    query,
    document      what the model is shown, with {query} and {document} for the texts; {instruction} in that of the query
                  takes the query's instruction, which is not read where there is no place for it
    max_length    tokens of a pair; the longer of the two texts is cut first
    batch_tokens  tokens of one forward pass, padding included; changes memory, and results by rounding alone
    dtype         numbers of its arithmetic: float32 | bfloat16
    store         folder of scores, found again by pair, weights and settings; null: none is kept
    """

    def __init__(
        self,
        *,
        model: str,
        query: str = "{query}",
        document: str = "{document}",
        max_length: int = 512,
        batch_tokens: int = 16384,
        dtype: Literal["float32", "bfloat16"] = "float32",
        store: str | None = "runs/scores",
    ) -> None:
        for name, template in (("query", query), ("document", document)):
            if f"{{{name}}}" not in template:
                raise ConfigError(
                    f"miner.rescorer.{name}: expected a template with {{{name}}} in it, where the {name} goes, got {template!r}."
                )
        if INSTRUCTION in document:
            raise ConfigError(
                f"miner.rescorer.document: the place of {INSTRUCTION} is in the template of the query, got {document!r}."
            )
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"miner.rescorer.dtype={dtype}: expected float32 or bfloat16.")
        if max_length < 8 or batch_tokens < 1:
            raise ConfigError(
                f"miner.rescorer: expected max_length >= 8 and batch_tokens >= 1, got {max_length} and {batch_tokens}."
            )
        self.name = model
        self.folder = local_folder(model)
        self.templates = {"query": query, "document": document}
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.dtype = dtype
        self.store = None if store is None else Path(store).expanduser()
        self._config = AutoConfig.from_pretrained(self.folder)
        self._refuse_unfit()
        self._facts: dict[str, object] = {}

    def score(self, data: MiningData, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32, CPU: logits of n pairs. Every rank calls it, once per mining.

        Raises ConfigError for a model without a head of its own or without padding, and where a template wants an instruction
        that a query does not have; TrainingError for a logit that is not finite.
        """
        distinct, place = np.unique(queries * np.int64(len(data.documents)) + documents, return_inverse=True)
        query, document = np.divmod(distinct, np.int64(max(1, len(data.documents))))
        shown = _Shown(data, query, document, self.templates)
        scores = np.full(distinct.size, np.nan, dtype=np.float32)
        store, keys = None, None
        if self.store is not None:
            store, keys = PairStore(self.store, self.identity()), shown.keys()
            scores = store.find(keys)
        new = np.flatnonzero(np.isnan(scores))
        cut = self._score_new(shown, new, scores, store, keys) if new.size else 0
        counts = torch.tensor([distinct.size, new.size, cut])
        pairs, scored, cut = distributed.sum_over_ranks(counts).tolist()
        self._facts = {
            "kind": "cross_encoder",
            "model": self.name,
            "pairs": pairs,
            "scored": scored,
            "there": pairs - scored,
            "cut": cut,  # of those scored
            "max_length": self.max_length,
            "dtype": self.dtype,
            "reads_instructions": INSTRUCTION in self.templates["query"],
        }
        log.info(
            f"rescored: {scored:,} pairs by {self.name}, {cut:,} of them cut at {self.max_length} tokens; "
            f"{pairs - scored:,} found in the store"
        )
        return torch.from_numpy(scores[place])

    def facts(self) -> dict[str, object]:
        """Of the last `score`, all ranks together."""
        return self._facts

    def identity(self) -> dict[str, Any]:
        """What a score depends on, besides the texts; the same on all ranks. Rank 0 reads the files once."""
        return {
            "kind": "cross_encoder",
            "files": on_main(self._digest),
            **self.templates,
            "max_length": self.max_length,
            "dtype": self.dtype,
        }

    def _digest(self) -> str:
        """Of the names and contents of weights, config and tokenizer."""
        digest = xxhash.xxh3_128()
        for path in sorted(path for pattern in _FILES for path in self.folder.glob(pattern)):
            digest.update(f"\x00{path.name}\x00{path.stat().st_size}\x00".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()

    def _score_new(
        self, shown: _Shown, new: Ints, scores: np.ndarray, store: PairStore | None, keys: Ints | None
    ) -> int:
        """Fills in `scores` at `new`; returns how many pairs were cut. Longest first: what does not fit fails at once."""
        tokenizer, model = self._load()
        order = new[np.argsort(-shown.lengths()[new], kind="stable")]
        cut = 0
        bar = tqdm(total=order.size, desc="rescore", unit="pair", disable=None if distributed.is_main() else True)
        try:
            with bar:
                for block in (order[i : i + PAIRS_AT_ONCE] for i in range(0, order.size, PAIRS_AT_ONCE)):
                    queries, documents = shown.texts(block)
                    encoded = tokenizer(queries, documents, truncation="longest_first", max_length=self.max_length)
                    cut += sum(bool(one.overflowing) for one in encoded.encodings)
                    found = np.empty(block.size, dtype=np.float32)
                    for batch in self._batches([len(ids) for ids in encoded["input_ids"]]):
                        found[batch] = _logits(model, tokenizer, {name: encoded[name] for name in encoded}, batch)
                        bar.update(len(batch))
                    self._refuse_broken(found, queries, documents)
                    scores[block] = found
                    if store is not None and keys is not None:
                        store.add(keys[block], found, documents)
        finally:
            if store is not None:
                store.flush()  # also what was scored before an error or an interrupt
        return cut

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Pairs of nearly equal length, so many that they fit into the budget when padded to the longest."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        while order:
            size = max(1, self.batch_tokens // lengths[order[0]])
            yield order[:size]
            order = order[size:]

    def _load(self) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        if not tokenizer.is_fast or tokenizer.pad_token_id is None:
            lacking = "no padding token" if tokenizer.is_fast else "no fast tokenizer (tokenizer.json)"
            raise ConfigError(
                f"miner.rescorer.model: {self.name} has {lacking}. Add one to its folder, or take another model."
            )
        model, found = AutoModelForSequenceClassification.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), use_safetensors=True, output_loading_info=True
        )
        if found["missing_keys"]:
            lacking = ", ".join(sorted(found["missing_keys"]))
            raise ConfigError(
                f"miner.rescorer.model: {self.name} is no cross-encoder: its weights lack {lacking}. Name a "
                "reranker; for an embedding model use rescorer@miner.rescorer=bi_encoder."
            )
        model.config.pad_token_id = tokenizer.pad_token_id  # by which a decoder finds the last token
        return tokenizer, model.eval().to(distributed.device())

    def _refuse_unfit(self) -> None:
        if self._config.num_labels != 1:
            raise ConfigError(
                f"miner.rescorer.model: {self.name} has {self._config.num_labels} labels, and a score is one number. Name a "
                "reranker with one label; for an embedding model use rescorer@miner.rescorer=bi_encoder."
            )
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is not None and self.max_length > positions:
            raise ConfigError(
                f"miner.rescorer.max_length={self.max_length}: {self.name} has {positions} positions. Set it to at most that."
            )

    def _refuse_broken(self, scores: np.ndarray, queries: list[str], documents: list[str]) -> None:
        broken = np.flatnonzero(~np.isfinite(scores))
        if broken.size:
            raise TrainingError(
                f"miner.rescorer: {self.name} scores {broken.size} of {scores.size} pairs with {scores[broken[0]]}, the first is "
                f"{queries[broken[0]][:80]!r} and {documents[broken[0]][:80]!r}. Use dtype=float32, or another model."
            )


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, encoded: Mapping[str, list[list[int]]], batch: list[int]) -> np.ndarray:
    """[n] of some pairs, padded on the right."""
    longest = max(len(encoded["input_ids"][i]) for i in batch)
    fillers = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    inputs = {
        name: torch.tensor([rows[i] + [fillers[name]] * (longest - len(rows[i])) for i in batch], device=model.device)
        for name, rows in encoded.items()
    }
    return model(**inputs).logits[:, 0].float().cpu().numpy()


class _Shown:
    """What the model is shown of n pairs. Each text is filled into its template once."""

    def __init__(self, data: MiningData, queries: Ints, documents: Ints, templates: Mapping[str, str]) -> None:
        asked, self._query = np.unique(queries, return_inverse=True)
        answers, self._document = np.unique(documents, return_inverse=True)
        self._queries = [_query(data, number, templates["query"]) for number in asked.tolist()]
        self._documents = [_filled(templates["document"], document=data.documents[n]) for n in answers.tolist()]

    def keys(self) -> Ints:
        """[n] by which a store knows the pairs."""
        queries, documents = ([text_id(text) for text in texts] for texts in (self._queries, self._documents))
        return pair_keys([queries[i] for i in self._query], [documents[i] for i in self._document])

    def lengths(self) -> Ints:
        """[n] characters, a guess at the order of the tokens."""
        queries, documents = (np.array([len(text) for text in texts]) for texts in (self._queries, self._documents))
        return queries[self._query] + documents[self._document]

    def texts(self, pairs: Ints) -> tuple[list[str], list[str]]:
        """Queries and documents of some pairs."""
        return [self._queries[i] for i in self._query[pairs]], [self._documents[i] for i in self._document[pairs]]


def _query(data: MiningData, number: int, template: str) -> str:
    text, instruction = data.queries[number], data.instructions[number]
    if instruction is None and INSTRUCTION in template:
        raise ConfigError(
            f"miner.rescorer.query: {template!r} takes an instruction, and source {data.source} brings none for the query "
            f"{text[:80]!r}. Set data.sources.{data.source}.instruction, or take {INSTRUCTION} out of the template."
        )
    return _filled(template, query=text, instruction=instruction or "")


def _filled(template: str, **texts: str) -> str:
    """Each placeholder once: what stands in a text is no placeholder."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template)
