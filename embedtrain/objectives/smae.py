"""Masked words and rebuilt texts at several layers and sizes at once (Starbucks, arXiv:2410.13230)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.objectives.decoder import AttentionBlock, positions
from embedtrain.objectives.masked_lm import masked_loss
from embedtrain.objectives.masking import Masker, count, words
from embedtrain.objectives.prediction import prediction_loss
from embedtrain.objectives.reading import (
    backbone_of,
    input_embeddings,
    longest_text,
    require_direction,
    require_embedding,
)
from embedtrain.objectives.texts import single_texts
from embedtrain.objectives.words import Words
from embedtrain.types import NO_TARGET, TokenBatch, TokenTask


class StarbucksMAE(nn.Module):
    """Hide words from the encoder and others from a one-layer decoder, for each layer and size that shall be a model of its own.

        L = mean over (layer l, dim d) of  ( L_encoder(l, d) + L_decoder(l, d) ) / 2
        L_encoder   masked language model on the first d numbers of the states of layer l
        L_decoder   mean over the decoder's hidden words i of -log p(x_i | a_i),   a = block([P h, e_1 + p_1, ..., e_n + p_n])

    h are the first d numbers of the embedding that pooling makes of layer l, P a square matrix, p positions and e input
    embeddings, those of the mask token at hidden words. What has d numbers meets the first d columns of P and of the
    language-model head, which is the same as zeros behind them. Decoder and P are shared by all (l, d).

    Zhuang et al. 2024 (arXiv:2410.13230), sec. 3.2, where the loss of fine-tuning is loss=starbucks with the same pairs. The
    decoder here has positions of its own, and is not a layer of BERT's making.
    Cost: one pass of the backbone; for each pair one layer over the words, and logits of the hidden ones.

    pairs            [[layer, dim], ...]; layers count from 1
    share            part of the words that is hidden from the encoder
    decoder_share    part of the words that is hidden from the decoder
    mask_token       null: the tokenizer's own
    """

    trains = ("backbone", "pooling")

    def __init__(
        self,
        *,
        encoder: Encoder,
        pairs: Sequence[Sequence[int]],
        share: float = 0.2,
        decoder_share: float = 0.4,
        mask_token: str | None = None,
    ) -> None:
        super().__init__()
        require_direction(encoder, "bidirectional", "a hidden word is predicted from both sides")
        require_embedding(encoder)
        backbone = backbone_of(encoder)
        if getattr(encoder.pooling, "needs_layers", False):
            raise ConfigError(
                f"pooling: each layer is pooled by itself, but {type(encoder.pooling).__name__} reads several at once. Use cls."
            )
        depth, size = backbone.config.num_hidden_layers, backbone.hidden_size
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ConfigError(f"objective.pairs: expected [layer, dim] once or more, got {list(pairs)}.")
        for layer, dim in pairs:
            if not (1 <= layer <= depth and 1 <= dim <= size):
                raise ConfigError(
                    f"objective.pairs: [{layer}, {dim}], but {backbone.name} has the layers 1 to {depth}, of {size} dimensions."
                )
        self.pairs = [tuple(pair) for pair in pairs]
        self.weights = {"encoder": 0.5, "decoder": 0.5}
        self.masker, self.decoder_masker = (
            Masker(encoder.tokenizer, share=part, masked=0.8, random=0.1, mask_token=mask_token)
            for part in (share, decoder_share)
        )
        self.head = LanguageModelHead(backbone)
        self.project = nn.Linear(size, size, bias=False)
        self.positions = positions(longest_text(encoder), size)
        self.input_norm = nn.LayerNorm(size)
        self.block = AttentionBlock(backbone)

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        tokens, seeds, rows = single_texts(batch, seed)
        read, hidden = self.masker(tokens, seeds)
        decoder_read, decoder_hidden = self.decoder_masker(
            tokens, seeds + 1
        )  # the seed itself drew those of the encoder
        is_word = words(tokens, self.masker.special).ids != NO_TARGET
        inputs = replace(tokens, ids=torch.where(is_word, decoder_read.ids, NO_TARGET))
        return TokenTask(
            {"text": read},
            {"encoder": hidden, "decoder": decoder_hidden, "inputs": inputs},
            {"encoder": count(hidden), "decoder": count(decoder_hidden)},
            seeds,
            rows,
        )

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        tokens = task.texts["text"]
        states = encoder.backbone(tokens, all_layers=True)
        found = Words.of(task.labels["inputs"])
        inputs = input_embeddings(encoder)(found.ids)
        targets = task.labels["decoder"].ids[found.places]
        asked = targets != NO_TARGET
        sums: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
        for layer, dim in self.pairs:
            last = layer == len(states) - 1
            hidden = states[layer] if last else encoder.backbone.finish(states[layer])  # type: ignore[operator]
            rebuilt = self.decode(first(encoder.pooling(hidden, tokens), dim), inputs, found)
            sums["encoder"].append(masked_loss(self.head, first(hidden, dim), task.labels["encoder"].ids))
            sums["decoder"].append(prediction_loss(self.head, rebuilt[asked], targets[asked]))
        return {term: torch.stack(parts).mean() for term, parts in sums.items()}

    def decode(self, embedding: Tensor, inputs: Tensor, found: Words) -> Tensor:
        """Decoder states [M, H] of all words, from embeddings [N, H] and what stands for the words [M, H]."""
        place = self.positions(found.positions)
        h = self.project(embedding.to(place.dtype))[:, None]
        run = torch.cat([h, found.pad(self.input_norm(inputs + place))], dim=1)
        there = torch.cat([found.present.new_ones(len(h), 1), found.present], dim=1)
        visible = there[:, None].expand(-1, run.shape[1], -1)
        return found.flat(self.block(run, run, visible)[:, 1:])


def first(values: Tensor, dim: int) -> Tensor:
    """The first `dim` numbers of each vector [.., H], and zeros behind them."""
    return values * (torch.arange(values.shape[-1], device=values.device) < dim)
