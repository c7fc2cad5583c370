"""Texts to embeddings for an evaluation: through the one `encode` of the encoder, divided among the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from embedtrain.distributed import gather_objects, is_main, rank, world_size
from embedtrain.errors import TrainingError
from embedtrain.types import Role


class TextEncoder(Protocol):
    """All that an evaluator needs of a model: texts -> embeddings [N, E] in the order of the texts, unit norm or not."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        source: str | None,
        instructions: Sequence[str | None] | None,
        show_progress: bool,
    ) -> Tensor: ...


def encode(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    role: Role,
    source: str | None = None,
    instructions: Sequence[str | None] | None = None,
    show_progress: bool = False,
) -> Tensor:
    """Embeddings [N, E] of `texts` on this rank.

    Raises TrainingError when they are not finite: no figure means anything then.
    """
    embeddings = encoder.encode(
        texts, role=role, source=source, instructions=instructions, show_progress=show_progress and is_main()
    )
    broken = (~torch.isfinite(embeddings).all(dim=1)).nonzero().squeeze(1).tolist()
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
) -> Tensor:
    """Embeddings [N, E] of `texts` on every rank, each having encoded its share."""
    mine = share_of_rank(len(texts))
    own = torch.empty(0, 0)
    if mine:
        own = encode(
            encoder,
            [texts[i] for i in mine],
            role=role,
            source=source,
            instructions=None if instructions is None else [instructions[i] for i in mine],
            show_progress=show_progress,
        )
    parts = gather_objects(own.float().cpu())
    embeddings = torch.empty(len(texts), parts[0].shape[1])  # rank 0 always has a share
    for r, part in enumerate(parts):
        if len(part):
            embeddings[r :: len(parts)] = part
    return embeddings


def share_of_rank(size: int) -> range:
    """Every W-th of `size` things: a list that is sorted by length or topic still gives all ranks the same work."""
    return range(rank(), size, world_size())


def prompts_used(encoder: Any, source: str | None) -> dict[str, str]:
    """The prompt templates behind a figure: without them it cannot be repeated. Empty for an encoder that has no table."""
    prompts = getattr(getattr(encoder, "tokenizer", None), "prompts", None)
    if prompts is None:
        return {}
    return {f"{role}_prompt": prompts.template(role, source) for role in ("query", "document")}
