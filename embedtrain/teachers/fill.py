"""Fill a store: every text of some rows, embedded by its teacher once, on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.store.manifest import start_store
from embedtrain.store.ranks import on_main
from embedtrain.store.reader import VectorStore
from embedtrain.store.writer import StoreWriter
from embedtrain.teachers.cached import CachedTeacher
from embedtrain.teachers.online import OnlineTeacher
from embedtrain.teachers.texts import RoleTexts, texts_of
from embedtrain.types import TrainingExample

# Rows read at once: enough texts to sort by length and to fill forward passes with.
ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Filled:
    """Texts of all ranks."""

    encoded: int
    there: int  # before


def fill(
    teacher: CachedTeacher, examples: Iterable[TrainingExample], *, rows: int, device: torch.device | str
) -> Filled:
    """Adds to the store what it lacks of the texts of `examples`, of which there are `rows`. Every rank calls it.

    A text belongs to the rank that its key says, so that ranks need not talk: each reads all rows and encodes its own. What
    a killed call has written stays and is not encoded again. Raises DataError where the store is of another teacher.
    """
    rank, world = distributed.rank(), distributed.world_size()
    on_main(lambda: start_store(teacher.path, teacher.manifest()))
    writer = StoreWriter(teacher.path, teacher.numbers)
    store, online = VectorStore(teacher.path), teacher.filled_by
    assert online is not None
    seen: set[int] = set()
    encoded = 0
    bar = tqdm(total=rows, desc="teach", unit="row", disable=None if distributed.is_main() else True)
    with bar as progress:
        for block in _blocks(examples):
            for texts in texts_of(block):
                keys = texts.keys(online.tokenizer.prompts).tolist()
                own = {key: place for place, key in enumerate(keys) if key % world == rank and key not in seen}
                seen.update(own)
                there = store.has(list(own))
                new = [place for place, known in zip(own.values(), there.tolist(), strict=True) if not known]
                if new:
                    _encode(online, texts.select(new), [keys[place] for place in new], writer, device)
                    encoded += len(new)
            progress.update(len(block))
    writer.flush()
    distributed.barrier()
    total, distinct = distributed.sum_over_ranks(torch.tensor([encoded, len(seen)])).tolist()
    return Filled(encoded=total, there=distinct - total)


def _encode(
    online: OnlineTeacher, texts: RoleTexts, keys: list[int], writer: StoreWriter, device: torch.device | str
) -> None:
    if not online.loaded:
        online.load(device)
    writer.add(keys, online.encode(online.tokens(texts)).cpu().numpy(), texts.texts)


def _blocks(examples: Iterable[TrainingExample]) -> Iterator[list[TrainingExample]]:
    rest = iter(examples)
    while block := list(islice(rest, ROWS_AT_ONCE)):
        yield block
