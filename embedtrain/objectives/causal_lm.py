"""Causal language model: predict each word from those before it."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.objectives.masked_lm import masked_loss
from embedtrain.objectives.masking import count
from embedtrain.objectives.reading import backbone_of, require_direction
from embedtrain.objectives.texts import positive_pairs, single_texts
from embedtrain.types import NO_TARGET, RaggedTokens, TokenBatch, TokenTask


class CausalLanguageModel(nn.Module):
    """Predict each token of a text from those before it.

        L = mean over tokens i of  -log p(x_i | x_1 .. x_{i-1})

    What decoders are pretrained with (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training). Of pairs
    with `answers` a text is the query with its positive behind it, and the tokens of the positive alone are predicted: supervised
    fine-tuning. A text's first token is never predicted. Conan-embedding-v2 (arXiv:2509.12892) begins with both.
    Cost: one pass of the backbone; logits of all predicted tokens, 1,024 at a time.

    answers   read each query with its positive, and predict the positive alone
    """

    trains = ("backbone",)

    def __init__(self, *, encoder: Encoder, answers: bool = False) -> None:
        super().__init__()
        require_direction(encoder, "causal", "a word that is to be predicted must not be seen before")
        self.weights = {"causal_lm": 1.0}
        self.answers = answers
        self.head = LanguageModelHead(backbone_of(encoder))

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        if self.answers:
            queries, documents, seeds, rows = positive_pairs(batch, seed)
            given = queries.lengths.tolist()
            texts = [q + d for q, d in zip(_lists(queries), _lists(documents), strict=True)]
        else:
            tokens, seeds, rows = single_texts(batch, seed)
            texts = _lists(tokens)
            given = [1] * len(texts)
        read = RaggedTokens.from_lists(texts)
        # The state of token i predicts token i + 1; of what was given, only the last one predicts.
        labels = RaggedTokens.from_lists(
            [[NO_TARGET] * (n - 1) + text[n:] + [NO_TARGET] for n, text in zip(given, texts, strict=True)]
        )
        return TokenTask({"text": read}, {"causal_lm": labels}, {"causal_lm": count(labels)}, seeds, rows)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        hidden = encoder.backbone(task.texts["text"])
        return {term: masked_loss(self.head, hidden, labels.ids) for term, labels in task.labels.items()}


def _lists(tokens: RaggedTokens) -> list[list[int]]:
    ids = tokens.ids.tolist()
    return [ids[a:b] for a, b in itertools.pairwise(tokens.offsets.tolist())]
