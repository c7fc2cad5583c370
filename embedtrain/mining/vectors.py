"""Texts to vectors that lie on disk: each text is embedded once, by one rank, and never again by a model of equal weights.

    1. identity of the encoder -> its store below the root
    2. keys of all texts (role, prompt, text) -> which of them the store lacks; rank 0 lists the shards for all
    3. what is new, longest first, dealt out to the ranks in turn; each encodes its own and writes shards
    4. every text is found: (shard, place), and read from there when a search asks for it

No rank ever holds all vectors: a shard's worth of new ones, and the rows that `Vectors.rows` is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.data.prompts import PLACEHOLDER
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.evaluation.encoding import read_context
from embedtrain.mining.identity import identity
from embedtrain.mining.records import MiningData
from embedtrain.store.keys import text_keys
from embedtrain.store.manifest import Manifest, Numbers, start_store, store_folder
from embedtrain.store.ranks import on_main
from embedtrain.store.reader import NOWHERE, VectorStore, shard_names
from embedtrain.store.writer import StoreWriter
from embedtrain.types import Role

Precision = Literal["bf16"]

# Texts handed to the encoder at a time: few enough for a kill to cost little, also of long texts on a CPU.
_TEXTS_AT_ONCE = 1024


class ArrayVectors:
    """Vectors in memory, [N, E]: for tests, benchmarks and small sets."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dim = int(array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, index: Ints | slice) -> np.ndarray:
        """[n, E] fp32, a copy."""
        return np.array(self.array[index], dtype=np.float32)


class StoredVectors:
    """Vectors of N texts where they lie in a store: 16 bytes for each text, and the pages that are read."""

    def __init__(self, store: VectorStore, shard: Ints, place: Ints) -> None:
        self.store = store
        self.shard = shard
        self.place = place
        self.dim = store.manifest.dim

    def __len__(self) -> int:
        return self.shard.size

    def rows(self, index: Ints | slice) -> np.ndarray:
        """[n, E] fp32, a copy."""
        return self.store.read(self.shard[index], self.place[index])


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of a mining, and what they cost. Numbers are of all ranks."""

    queries: StoredVectors  # [Q, E]
    documents: StoredVectors  # [D, E]
    encoded: int  # texts that were new
    there: int  # texts that the store had
    num_zero: int  # texts whose vector is 0: it is similar to nothing
    folder: Path  # the store
    identity: dict[str, Any]
    seconds: float

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {
            "store": str(self.folder),
            "encoded": self.encoded,
            "there": self.there,
            "zero_vectors": self.num_zero,
            "embed_seconds": self.seconds,
        }


def embed(
    encoder: Encoder,
    data: MiningData,
    *,
    root: Path,
    numbers: Numbers = "float32",
    source: str | None = None,
    show_progress: bool = False,
    shard_texts: int = 65536,
) -> Embedded:
    """Vectors of all queries and documents of `data`, from the store of this encoder below `root`. Every rank calls it.

    Similarity in mining is the inner product of what `encoder.encode` gives. An encoder that normalises gives cosines; of one
    that does not (`encoder.normalize` is False) the vectors are stored as long as they are, and whoever wants cosines divides.
    float16 halves the store; similarities of unit vectors are then right to about 1e-3. What a killed call has written stays, and
    is not encoded again.

    root         folder on a disk that all ranks share; or a store, which must be of this very model
    source       whose prompts are used; None: `data.source`. Texts are cut at the encoder's own maximum lengths
    shard_texts  texts of a shard: what a rank holds in memory, and what a kill may cost

    Raises ConfigError for an encoder of several vectors per text, and for documents whose prompt wants an instruction that
    the queries do not agree on; DataError for a store of another model, a damaged shard, and a vector that is not finite.
    """
    refuse_multi_vector(encoder)
    started = time.perf_counter()
    read_context(encoder, data.documents, data.source if source is None else source)
    manifest = Manifest(
        identity=identity(encoder), dim=getattr(encoder.pooling, "search_dim", encoder.embedding_dim), numbers=numbers
    )
    parts = _parts(encoder, data, data.source if source is None else source)
    folder, names = on_main(lambda: _open(root, manifest))
    store = VectorStore(folder, shards=names)
    keys = np.concatenate([part.keys for part in parts])
    distinct, first = np.unique(keys, return_index=True)
    new = first[~store.has(distinct)]
    written = _encode(encoder, parts, new, StoreWriter(folder, numbers, shard_texts=shard_texts), show_progress)
    # Names travel, and no rank lists the folder: what others have just written may not show in a list on a network disk.
    names = sorted({*names, *(name for one in distributed.gather_objects(written) for name in one)})
    store = VectorStore(folder, shards=names)
    shard, place = store.locate(keys)
    assert (shard != NOWHERE).all(), f"{folder}: a text that was embedded is not in the store"
    return Embedded(
        queries=StoredVectors(store, shard[: len(data.queries)], place[: len(data.queries)]),
        documents=StoredVectors(store, shard[len(data.queries) :], place[len(data.queries) :]),
        encoded=new.size,
        there=distinct.size - new.size,
        num_zero=store.count_zeros(shard[first], place[first]),
        folder=folder,
        identity=dict(manifest.identity),
        seconds=time.perf_counter() - started,
    )


@contextmanager
def in_precision(encoder: Encoder, precision: Precision | None) -> Iterator[Encoder]:
    """The encoder, which inside computes in bf16 where that is asked, and as it did before afterwards."""
    own = encoder.encode_dtype
    encoder.encode_dtype = torch.bfloat16 if precision == "bf16" else own
    try:
        yield encoder
    finally:
        encoder.encode_dtype = own


def refuse_multi_vector(encoder: Encoder) -> None:
    """Raises ConfigError where a text has several vectors."""
    if encoder.multi_vector:
        raise ConfigError(
            f"miner: {type(encoder.pooling).__name__} gives several vectors per text, compared by MaxSim, and mining searches "
            "one vector per text. Name a model with one vector per text (miner.model=...), or mine by words (miner.search=bm25)."
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Texts of one role, as the encoder is asked for them."""

    role: Role
    texts: Sequence[str]
    instructions: Sequence[str | None]
    source: str
    keys: Ints


def _parts(encoder: Encoder, data: MiningData, source: str) -> tuple[_Part, _Part]:
    """Queries and documents."""

    def part(role: Role, texts: Sequence[str], instructions: Sequence[str | None]) -> _Part:
        prompts = encoder.tokenizer.around(len(texts), role, source, instructions)
        return _Part(role, texts, instructions, source, text_keys(role, prompts, texts))

    told = _instruction_of_documents(encoder, data, source)
    return (
        part("query", data.queries, data.instructions),
        part("document", data.documents, [told] * len(data.documents)),
    )


def _instruction_of_documents(encoder: Encoder, data: MiningData, source: str) -> str | None:
    """The instruction of all queries, where the prompt of documents has a place for it: a document has no row of its own."""
    if PLACEHOLDER not in encoder.tokenizer.prompts.template("document", source):
        return None
    told = set(data.instructions)
    if len(told) > 1:
        raise ConfigError(
            f"prompts: the documents of source {source!r} are read with an instruction, and its rows bring {len(told)} different "
            f"ones, so a document of the corpus has none of its own. Take {PLACEHOLDER} out of the document's prompt, or give "
            "the source one instruction."
        )
    return told.pop()


def _open(root: Path, manifest: Manifest) -> tuple[Path, list[str]]:
    """The store, made where it was not there, and its shards."""
    folder = store_folder(root, manifest)
    start_store(folder, manifest)
    return folder, shard_names(folder)


def _encode(encoder: Encoder, parts: Sequence[_Part], new: Ints, writer: StoreWriter, show_progress: bool) -> list[str]:
    """Encodes this rank's share of the texts `new`, numbered through all parts. The names of the shards written."""
    rank, world = distributed.rank(), distributed.world_size()
    shown = show_progress and distributed.is_main()
    owned = []
    start = 0
    for part in parts:
        places = np.sort(new[(new >= start) & (new < start + len(part.texts))]) - start
        lengths = np.array([len(part.texts[place]) for place in places.tolist()], dtype=np.int64)
        owned.append(places[np.argsort(-lengths, kind="stable")][rank::world])
        start += len(part.texts)
    bar = tqdm(total=sum(map(len, owned)), desc="embed", unit="text", disable=None if shown else True)
    try:
        with bar as progress:
            for part, own in zip(parts, owned, strict=True):
                for block in (own[i : i + _TEXTS_AT_ONCE] for i in range(0, own.size, _TEXTS_AT_ONCE)):
                    _encode_block(encoder, part, block, writer)
                    progress.update(block.size)
    finally:
        writer.flush()  # also what was encoded before an error or an interrupt
    return writer.written


def _encode_block(encoder: Encoder, part: _Part, places: Ints, writer: StoreWriter) -> None:
    texts = [part.texts[place] for place in places.tolist()]
    vectors = encoder.encode(
        texts,
        role=part.role,
        source=part.source,
        instructions=[part.instructions[place] for place in places.tolist()],
    )
    writer.add(part.keys[places], vectors.numpy(), texts)
