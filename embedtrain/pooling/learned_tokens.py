"""Learned tokens (MetaEmbed, arXiv:2509.18095): a few tokens of no word, put behind a text to summarise it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.errors import DataError
from embedtrain.types import Embeddings, RaggedTokens, Role


def closing_ids(pooling: nn.Module) -> dict[Role, list[int]]:
    """What the tokenizer puts behind every text, by role: nothing, where `pooling` has no learned tokens."""
    if not isinstance(pooling, LearnedTokensPooling):
        return {}
    return {"query": pooling.ids("query"), "document": pooling.ids("document")}


class LearnedTokensPooling(nn.Module):
    """The last-layer states of the learned tokens, one vector each; each scaled to length 1 by the encoder. For MaxSim.

    A learned token has an id behind the vocabulary and no row in the backbone: its input vector is a parameter of this
    head. So it trains beside frozen weights (LoRA) and is saved and exported with the head. The tokenizer puts the ids
    behind every text, of a query others than of a document. Nested groups of them (the first 1, 2, 4, ...) are a loss.

    num_query_tokens, num_document_tokens   16 and 64 in the paper
    dim                                     of a linear layer without bias behind the states; null: none
    hidden_size, vocab_size                 of the backbone; supplied by the program.
    """

    multi_vector = True

    def __init__(
        self,
        *,
        hidden_size: int,
        vocab_size: int,
        num_query_tokens: int = 16,
        num_document_tokens: int = 64,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_query_tokens = num_query_tokens
        self.num_document_tokens = num_document_tokens
        self.dim = dim
        self.first_id = vocab_size
        self.output_dim = dim or hidden_size
        self.vectors = nn.Parameter(0.02 * torch.randn(num_query_tokens + num_document_tokens, hidden_size))
        self.linear = None if dim is None else nn.Linear(hidden_size, dim, bias=False)

    def ids(self, role: Role) -> list[int]:
        """Of the tokens behind texts of this role."""
        middle = self.first_id + self.num_query_tokens
        last = self.first_id + len(self.vectors)
        return list(range(self.first_id, middle) if role == "query" else range(middle, last))

    def inputs(self, ids: Tensor, embed: nn.Module) -> Tensor:
        """Input vectors [S, H] of a backbone: `embed` of the words, the parameters of the learned tokens."""
        learned = ids >= self.first_id
        words = embed(ids.masked_fill(learned, 0))
        places = (ids - self.first_id).clamp(min=0)
        return torch.where(learned[:, None], self.vectors[places].to(words.dtype), words)

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Embeddings:
        if tokens.is_query is None:
            raise DataError(
                "pooling: learned tokens differ by role, but these tokens do not say whether they are queries or documents. "
                "Give RaggedTokens.from_lists a role."
            )
        counts = torch.where(tokens.is_query, self.num_query_tokens, self.num_document_tokens)
        offsets = torch.zeros(len(tokens) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=offsets[1:])
        first = torch.repeat_interleave(tokens.offsets[1:] - counts - offsets[:-1], counts)
        states = hidden[(first + torch.arange(int(offsets[-1]))).to(hidden.device, non_blocking=True)].float()
        return Embeddings(states if self.linear is None else self.linear(states), normalized=False, offsets=offsets)
