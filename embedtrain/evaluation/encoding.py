"""Texts to embeddings for an evaluation: through the one `encode` of the encoder, divided among the ranks.

An encoder that gives several vectors per text says so (`multi_vector`) and is asked by `encode_embeddings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from embedtrain.distributed import gather_objects, is_main, rank, world_size
from embedtrain.errors import TrainingError
from embedtrain.types import Embeddings, Role


class TextEncoder(Protocol):
    """All that an evaluator needs of a model: texts -> vectors [N, E] in the order of the texts, for inner products."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        source: str | None,
        instructions: Sequence[str | None] | None,
        show_progress: bool,
    ) -> Tensor: ...


def read_context(encoder: Any, documents: Sequence[str], source: str | None = None) -> dict[str, str]:
    """Gives an encoder that reads other documents in front of each text a sample of these, and says so, for a result.

    Nothing, where it reads none: see `Encoder.set_context`.
    """
    wanted = getattr(encoder, "num_context", 0)
    if not wanted:
        return {}
    encoder.set_context(documents, source=source)
    return {"context": f"{wanted} documents, a sample of {len(documents):,}"}


def encode(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    role: Role,
    source: str | None = None,
    instructions: Sequence[str | None] | None = None,
    show_progress: bool = False,
) -> Embeddings:
    """`texts` on this rank, one vector each or several.

    Raises TrainingError when they are not finite: no figure means anything then.
    """
    many = getattr(encoder, "multi_vector", False)
    ask: Any = encoder.encode_embeddings if many else encoder.encode  # type: ignore[attr-defined]
    given = ask(texts, role=role, source=source, instructions=instructions, show_progress=show_progress and is_main())
    embeddings = given if isinstance(given, Embeddings) else Embeddings(given)
    broken = _broken(embeddings)
    if broken:
        raise TrainingError(
            f"{len(broken)} of {len(texts)} texts have an embedding that is not finite, the first is {texts[broken[0]][:80]!r}. "
            "The weights are broken, or the precision does not fit them: load an earlier checkpoint, or use bf16 or fp32."
        )
    return embeddings


def encode_shares(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    role: Role,
    source: str | None = None,
    instructions: Sequence[str | None] | None = None,
    show_progress: bool = False,
) -> Embeddings:
    """`texts` on every rank, each having encoded its share; fp32 on the CPU."""
    mine = share_of_rank(len(texts))
    own = None
    if mine:
        own = encode(
            encoder,
            [texts[i] for i in mine],
            role=role,
            source=source,
            instructions=None if instructions is None else [instructions[i] for i in mine],
            show_progress=show_progress,
        ).map(lambda values: values.float().cpu())
    parts = gather_objects(own)
    together = Embeddings.cat([part for part in parts if part is not None])
    order = torch.tensor([i for r in range(len(parts)) for i in range(r, len(texts), len(parts))])
    return together.select(torch.argsort(order))


def _broken(embeddings: Embeddings) -> list[int]:
    """Texts with a number that is not finite."""
    rows = (~torch.isfinite(embeddings.values).all(dim=1)).nonzero().squeeze(1).cpu()
    if embeddings.offsets is not None:
        rows = torch.searchsorted(embeddings.offsets, rows, right=True).sub(1).unique()
    return rows.tolist()


def share_of_rank(size: int) -> range:
    """Every W-th of `size` things: a list that is sorted by length or topic still gives all ranks the same work."""
    return range(rank(), size, world_size())


def prompts_used(encoder: Any, source: str | None) -> dict[str, str]:
    """The prompt templates behind a figure: without them it cannot be repeated. Empty for an encoder that has no table."""
    prompts = getattr(getattr(encoder, "tokenizer", None), "prompts", None)
    if prompts is None:
        return {}
    return {f"{role}_prompt": prompts.template(role, source) for role in ("query", "document")}
