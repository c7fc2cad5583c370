"""Encoder: texts or tokens -> embeddings. A backbone, a pooling head, an optional projection, and the norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from embedtrain.data.chunking import chunks
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.types import Embeddings, RaggedTokens, Role

# Texts tokenised and sorted together by `encode`: enough to sort well, few enough to hold the tokens of.
_TEXTS_AT_ONCE = 16384


class Encoder(nn.Module):
    """One embedding per text: `normalize(projection(pooling(backbone(tokens))))`.

    backbone, pooling: see `embedtrain.types.Backbone` and `Pooling`.
    tokenizer: turns texts into the tokens of a role; the same one in training, evaluation and export.
    normalize: puts every embedding on the unit sphere, in fp32.
    encode_dtype: numbers of the backbone's arithmetic in `encode`; None is full precision. A training run sets its own here.
    projection_dim: a linear layer with bias to this dimension, as `sentence-transformers` exports a Dense; None for none.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pooling: nn.Module,
        tokenizer: TextTokenizer,
        normalize: bool = True,
        projection_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.tokenizer = tokenizer
        self.normalize = normalize
        self.encode_dtype: torch.dtype | None = None
        hidden_size: int = backbone.hidden_size  # type: ignore[assignment]
        self.projection = None if projection_dim is None else nn.Linear(hidden_size, projection_dim)
        self.embedding_dim = projection_dim or hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, tokens: RaggedTokens) -> Embeddings:
        """Embeddings [N, E] in fp32, with gradient where gradients are on. The caller decides about autocast."""
        tokens = tokens.to(self.device)
        options = {"all_layers": True} if getattr(self.pooling, "needs_layers", False) else {}
        hidden = self.backbone(tokens, **options)
        values = self.pooling(hidden, tokens).float()
        with torch.autocast(self.device.type, enabled=False):
            if self.projection is not None:
                values = self.projection(values)
            if self.normalize:
                values = F.normalize(values, dim=-1)  # a zero vector stays zero
        return Embeddings(values, self.normalize)

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role = "query",
        source: str | None = None,
        instructions: Sequence[str | None] | None = None,
        chunk_tokens: int = 16384,
        show_progress: bool = False,
    ) -> Tensor:
        """Embeddings [N, E] of `texts`, in their order, fp32 on the CPU.

        role, source, instructions: choose the prompt, as in training; `instructions` has one entry for each text.
        chunk_tokens: tokens in one forward pass; changes memory, never the result.
        """
        result = torch.empty(len(texts), self.embedding_dim)
        half = self.encode_dtype
        with (
            evaluating(self),
            nullcontext() if half is None else torch.autocast(self.device.type, dtype=half),
            tqdm(total=len(texts), desc="encode", unit="text", disable=None if show_progress else True) as progress,
        ):
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                block = slice(start, start + _TEXTS_AT_ONCE)
                tokens, _ = self.tokenizer.encode(
                    texts[block],
                    role=role,
                    source=source,
                    instructions=None if instructions is None else instructions[block],
                )
                for index in chunks(tokens.lengths, chunk_tokens):
                    result[start + index] = self(tokens.select(index)).values.cpu()
                    progress.update(index.numel())
        return result

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the mode of before outside."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
