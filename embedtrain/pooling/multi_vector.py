"""Multi-vector pooling (ColBERT, arXiv:2004.12832, section 3): one small vector per token, for late interaction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtrain.errors import DataError
from embedtrain.pooling.segments import pooled_tokens
from embedtrain.types import Embeddings, RaggedTokens


class MultiVectorPooling(nn.Module):
    """v_i = W h_i for every pooled token i, each scaled to length 1 by the encoder. Scored by MaxSim.

    ColBERT: dim 128, no bias, punctuation of documents skipped (there is nothing to find in it). BGE-M3
    (arXiv:2402.03216, section 3.2): as wide as the hidden states, with bias, without the first token (CLS), which is its
    dense embedding.

    dim               of each vector; null: the hidden states as they are, without W
    bias              of W
    skip_first        leave the first token of every text out
    skip_punctuation  leave tokens that are one character of punctuation out of documents
    hidden_size, punctuation_ids: of the backbone and its tokenizer; supplied by the program.
    """

    multi_vector = True
    reads_spans = True

    def __init__(
        self,
        *,
        hidden_size: int,
        punctuation_ids: Sequence[int],
        dim: int | None = 128,
        bias: bool = False,
        skip_first: bool = False,
        skip_punctuation: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.bias = bias
        self.skip_first = skip_first
        self.skip_punctuation = skip_punctuation
        self.output_dim = dim or hidden_size
        self.linear = None if dim is None else nn.Linear(hidden_size, dim, bias=bias)
        self._punctuation = torch.tensor(list(punctuation_ids), dtype=torch.int64)

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Embeddings:
        """Vectors [S', E], S' pooled tokens of all texts; a text may have none. Each span is a text of its own."""
        flat, span = self._kept(tokens)
        states = hidden[flat.to(hidden.device, non_blocking=True)].float()
        vectors = states if self.linear is None else self.linear(states)
        offsets = torch.zeros(len(tokens.spans) + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(span, minlength=len(tokens.spans)), 0, out=offsets[1:])
        return Embeddings(vectors, normalized=False, offsets=offsets)

    def _kept(self, tokens: RaggedTokens) -> tuple[Tensor, Tensor]:
        """Flat positions of the tokens that get a vector, and the span of each, on the CPU."""
        flat, span = pooled_tokens(tokens)
        text = tokens.span_texts()[span]
        keep = torch.ones_like(flat, dtype=torch.bool)
        if self.skip_first:
            keep &= flat != tokens.offsets[text]
        if self.skip_punctuation:
            if tokens.is_query is None:
                raise DataError(
                    "pooling: multi_vector skips the punctuation of documents, but these tokens do not say whether they are "
                    "queries or documents. Give RaggedTokens.from_lists a role."
                )
            # Waits for the device: how many vectors a text has is a shape, and shapes are made on the CPU.
            ids = tokens.ids.cpu()[flat]
            keep &= tokens.is_query[text] | ~torch.isin(ids, self._punctuation)
        return flat[keep], span[keep]
