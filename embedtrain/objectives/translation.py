"""Representation translation: rebuild one side of a pair from the token states of the other."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.objectives.decoder import AttentionBlock, filler_sees_first, positions
from embedtrain.objectives.masking import count, special_ids, words
from embedtrain.objectives.prediction import prediction_loss
from embedtrain.objectives.reading import backbone_of, longest_text
from embedtrain.objectives.texts import positive_pairs
from embedtrain.objectives.words import Words
from embedtrain.types import RaggedTokens, TokenBatch, TokenTask

Rebuild = Literal["document", "query", "both"]


class RepresentationTranslation(nn.Module):
    """Rebuild every word of the positive from the token states of the query: word states that align across languages.

        L = mean over words b_j of side B of  -log p(b_j | decoder([s_1, ..., s_m, mask + p_1, ..., mask + p_n])_{m + j})

    s are the last hidden states of the words of side A, p positions, and of B the decoder knows the length alone. Special
    tokens take no part, so that nothing passes through a [CLS] that pooling reads.

    Li et al. 2023 (arXiv:2305.09148), DAP: added to a contrast of sentence pairs in every step (`auxiliary`). The authors'
    decoder starts from the last two layers of the pretrained model, here its layers are new.
    Cost: one pass of the backbone over each pair, `layers` over its words; logits of all words, 1,024 at a time.

    rebuild   document: the positive from the query (the authors' "target") | query | both: the mean of the two
    layers    attention layers of the decoder
    """

    trains = ("backbone",)

    def __init__(self, *, encoder: Encoder, rebuild: Rebuild = "document", layers: int = 2) -> None:
        super().__init__()
        if rebuild not in get_args(Rebuild):
            raise ConfigError(f"objective.rebuild={rebuild!r}: expected one of {', '.join(get_args(Rebuild))}.")
        if layers < 1:
            raise ConfigError(f"objective.layers={layers}: expected at least 1.")
        backbone = backbone_of(encoder)
        self.weights = {"document": 0.5, "query": 0.5} if rebuild == "both" else {rebuild: 1.0}
        self.special = special_ids(encoder.tokenizer)
        self.head = LanguageModelHead(backbone)
        self.positions = positions(longest_text(encoder), backbone.hidden_size)
        self.mask = nn.Parameter(0.02 * torch.randn(backbone.hidden_size))
        self.blocks = nn.ModuleList(AttentionBlock(backbone) for _ in range(layers))

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        queries, documents, seeds, rows = positive_pairs(batch, seed)
        labels = {"query": words(queries, self.special), "document": words(documents, self.special)}
        targets = {term: count(labels[term]) for term in self.weights}
        return TokenTask({"query": queries, "document": documents}, labels, targets, seeds, rows)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        hidden = encoder.backbone(RaggedTokens.cat([task.texts["query"], task.texts["document"]]))
        states = dict(
            zip(("query", "document"), hidden.split([t.num_tokens for t in task.texts.values()]), strict=True)
        )
        found = {side: Words.of(labels) for side, labels in task.labels.items()}
        sums = {}
        for side in self.weights:
            other = "query" if side == "document" else "document"
            memory = states[other][found[other].places]
            sums[side] = prediction_loss(self.head, self.decode(memory, found[other], found[side]), found[side].ids)
        return sums

    def decode(self, memory: Tensor, known: Words, wanted: Words) -> Tensor:
        """Decoder states [M', H] of the wanted words, from the states [M, H] of the known ones."""
        blank = self.mask + self.positions(wanted.positions)
        states = torch.cat([known.pad(memory.to(blank.dtype)), wanted.pad(blank)], dim=1)
        present = torch.cat([known.present, wanted.present], dim=1)  # [N, U + U']
        visible = filler_sees_first(present[:, None, :].expand(-1, present.shape[1], -1))
        for block in self.blocks:
            states = block(states, states, visible)
        return wanted.flat(states[:, known.present.shape[1] :])
