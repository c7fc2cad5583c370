"""Masked language model: predict what was hidden."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.objectives.masking import Masker, count
from embedtrain.objectives.prediction import prediction_loss
from embedtrain.objectives.reading import backbone_of, require_direction
from embedtrain.objectives.texts import single_texts
from embedtrain.types import NO_TARGET, TokenBatch, TokenTask


class MaskedLanguageModel(nn.Module):
    """Predict the words that were hidden from the model.

        L = mean over hidden words i of  -log p(x_i | the text with its hidden words replaced)

    Devlin et al. 2018 (arXiv:1810.04805), section 3.1. Adapts an encoder to the texts of a domain before contrast.
    Cost: one pass of the backbone; logits at hidden words alone, 1,024 at a time.

    share        part of the words of each text that is hidden; at least one word
    masked       of the hidden words, the part replaced by the mask token
    random       of the hidden words, the part replaced by any token; the rest stays as it is
    mask_token   null: the tokenizer's own
    """

    trains = ("backbone",)

    def __init__(
        self,
        *,
        encoder: Encoder,
        share: float = 0.15,
        masked: float = 0.8,
        random: float = 0.1,
        mask_token: str | None = None,
    ) -> None:
        super().__init__()
        require_direction(encoder, "bidirectional", "a hidden word is predicted from both sides")
        self.weights = {"masked_lm": 1.0}
        self.masker = Masker(encoder.tokenizer, share=share, masked=masked, random=random, mask_token=mask_token)
        self.head = LanguageModelHead(backbone_of(encoder))

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        tokens, seeds, rows = single_texts(batch, seed)
        read, labels = self.masker(tokens, seeds)
        return TokenTask({"text": read}, {"masked_lm": labels}, {"masked_lm": count(labels)}, seeds, rows)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        hidden = encoder.backbone(task.texts["text"])
        return {term: masked_loss(self.head, hidden, labels.ids) for term, labels in task.labels.items()}


def masked_loss(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses at the places of states [S, H] that have a label [S]."""
    places = (labels != NO_TARGET).nonzero().flatten()
    return prediction_loss(head, hidden[places], labels[places])
