"""Bidirectional reconstruction: from the embedding of one side of a pair the language model writes the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.objectives.masked_lm import masked_loss
from embedtrain.objectives.masking import count, special_ids, words
from embedtrain.objectives.reading import (
    backbone_of,
    input_embeddings,
    require_direction,
    require_embedding,
    states_and_embedding,
)
from embedtrain.objectives.texts import positive_pairs
from embedtrain.types import NO_TARGET, RaggedTokens, TokenBatch, TokenTask


class BidirectionalReconstruction(nn.Module):
    """Write the positive from the query's embedding, and the query from the positive's (EBQ2D and EBD2Q).

        L = query_to_document * L_Q2D + document_to_query * L_D2Q
        L_A2B = mean over words of the sides B of  -log p(b_j | h_A, b_1, ..., b_{j-1})

    h_A is the embedding of side A (what pooling makes, before projection and norm); it is read as the one token before B, by
    the same causal language model that made it. Su et al. 2025 (arXiv:2509.03020), stage I. As in the authors' code the
    prompt of side B is read with it, and special tokens are not predicted; a prompt that pooling leaves out is not either.
    Cost: two passes of the backbone over each pair; logits of all words, 1,024 at a time.

    query_to_document   weight of L_Q2D
    document_to_query   weight of L_D2Q
    """

    trains = ("backbone", "pooling")

    def __init__(self, *, encoder: Encoder, query_to_document: float = 0.2, document_to_query: float = 0.8) -> None:
        super().__init__()
        require_direction(encoder, "causal", "a text that is written word by word must not be seen before")
        require_embedding(encoder)
        if min(query_to_document, document_to_query) < 0 or query_to_document + document_to_query == 0:
            raise ConfigError(
                f"objective.query_to_document={query_to_document}, objective.document_to_query={document_to_query}: expected "
                "weights of 0 or more, not both 0."
            )
        self.weights = {"q2d": query_to_document, "d2q": document_to_query}
        self.special = special_ids(encoder.tokenizer)
        self.head = LanguageModelHead(backbone_of(encoder))

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        queries, documents, seeds, rows = positive_pairs(batch, seed)
        labels = {"q2d": words(documents, self.special), "d2q": words(queries, self.special)}
        targets = {term: count(tokens) for term, tokens in labels.items()}
        return TokenTask({"query": queries, "document": documents}, labels, targets, seeds, rows, passes=2)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        queries, documents = task.texts["query"], task.texts["document"]
        _, embeddings = states_and_embedding(encoder, RaggedTokens.cat([queries, documents]))
        behind = RaggedTokens.cat([documents, queries])  # what follows each embedding, in their order
        states = encoder.backbone(_with_place_before(behind), inputs=_inputs(encoder, embeddings, behind))
        labels = _one_longer(RaggedTokens.cat([task.labels["q2d"], task.labels["d2q"]]))
        middle = documents.num_tokens + len(documents)
        return {
            "q2d": masked_loss(self.head, states[:middle], labels[:middle]),
            "d2q": masked_loss(self.head, states[middle:], labels[middle:]),
        }


def _with_place_before(tokens: RaggedTokens) -> RaggedTokens:
    """Each text one token longer. Its ids are not read."""
    offsets = tokens.offsets + torch.arange(len(tokens) + 1)
    return RaggedTokens(
        tokens.ids.new_zeros(int(offsets[-1])), offsets, torch.stack([offsets[:-1], offsets[1:]], dim=1)
    )


def _inputs(encoder: Encoder, embeddings: Tensor, behind: RaggedTokens) -> Tensor:
    """Input vectors [N + S, H]: before each text its embedding."""
    known = input_embeddings(encoder)(behind.ids)
    starts = (behind.offsets[:-1] + torch.arange(len(behind))).to(known.device)
    rest = torch.ones(len(behind) + behind.num_tokens, dtype=torch.bool, device=known.device)
    rest[starts] = False
    inputs = known.new_empty(rest.numel(), known.shape[1])
    return inputs.index_put((rest.nonzero().flatten(),), known).index_put((starts,), embeddings.to(known.dtype))


def _one_longer(labels: RaggedTokens) -> Tensor:
    """Labels [S + N] at the places that predict them: the embedding predicts the first token, the last token nothing."""
    ends = (labels.offsets[1:] + torch.arange(len(labels))).to(labels.ids.device)
    longer = labels.ids.new_full((labels.num_tokens + len(labels),), NO_TARGET)
    rest = torch.ones_like(longer, dtype=torch.bool)
    rest[ends] = False
    longer[rest] = labels.ids
    return longer
