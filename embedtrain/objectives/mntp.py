"""Masked next-token prediction: teaches a decoder to look both ways."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.objectives.masked_lm import masked_loss
from embedtrain.objectives.masking import Masker, count
from embedtrain.objectives.reading import backbone_of, require_direction
from embedtrain.objectives.texts import single_texts
from embedtrain.types import NO_TARGET, RaggedTokens, TokenBatch, TokenTask


class MaskedNextToken(nn.Module):
    """Predict the words that were hidden, each from the state of the token before it.

        L = mean over hidden words i of  -log p(x_i | state at i - 1 of the text with its hidden words replaced)

    BehnamGhader et al. 2024 (arXiv:2404.05961), section 2.2. As MaskedLanguageModel but for the place that predicts: a
    decoder has learned to predict the next token, and keeps that habit while it learns to look to the right as well. For
    decoders with `backbone.attention=bidirectional`, usually with LoRA. A text's first token is never hidden.
    Cost: one pass of the backbone; logits at hidden words alone, 1,024 at a time.

    share        part of the words of each text that is hidden (the authors: 0.2 for Llama-2, 0.8 for Mistral)
    masked       of the hidden words, the part replaced by the mask token (the authors: 0.8, and 1.0 for Mistral)
    random       of the hidden words, the part replaced by any token; the rest stays as it is
    mask_token   null: the tokenizer's own; most decoders have none, and the authors take "_"
    """

    trains = ("backbone",)

    def __init__(
        self,
        *,
        encoder: Encoder,
        share: float = 0.2,
        masked: float = 0.8,
        random: float = 0.1,
        mask_token: str | None = None,
    ) -> None:
        super().__init__()
        require_direction(
            encoder,
            "bidirectional",
            "a causal model sees nothing new behind a hidden word. Set backbone.attention=bidirectional",
        )
        self.weights = {"mntp": 1.0}
        self.masker = Masker(encoder.tokenizer, share=share, masked=masked, random=random, mask_token=mask_token)
        self.head = LanguageModelHead(backbone_of(encoder))

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        tokens, seeds, rows = single_texts(batch, seed)
        read, labels = self.masker(tokens, seeds, skip_first=True)
        return TokenTask({"text": read}, {"mntp": one_before(labels)}, {"mntp": count(labels)}, seeds, rows)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        hidden = encoder.backbone(task.texts["text"])
        return {term: masked_loss(self.head, hidden, labels.ids) for term, labels in task.labels.items()}


def one_before(labels: RaggedTokens) -> RaggedTokens:
    """Every label at the place before its own; the first token of a text has none."""
    return replace(labels, ids=torch.cat([labels.ids[1:], labels.ids.new_tensor([NO_TARGET])]))
