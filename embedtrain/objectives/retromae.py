"""RetroMAE: an embedding from which even a weak decoder can rebuild the text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.objectives.decoder import AttentionBlock, positions
from embedtrain.objectives.masked_lm import masked_loss
from embedtrain.objectives.masking import Masker, count, words
from embedtrain.objectives.prediction import exact, prediction_loss
from embedtrain.objectives.reading import (
    backbone_of,
    input_embeddings,
    longest_text,
    require_direction,
    require_embedding,
    states_and_embedding,
)
from embedtrain.objectives.texts import single_texts
from embedtrain.objectives.words import Words
from embedtrain.types import TokenBatch, TokenTask

_WORDS = 1024  # of which logits over the vocabulary exist at a time in the bag of words


class RetroMAE(nn.Module):
    """Hide some words from the encoder and many from a one-layer decoder, which rebuilds the text from the embedding.

        L = L_encoder + L_decoder + bag_of_words * L_bow
        L_encoder   masked language model on the encoder's hidden words
        L_decoder   mean over all words i of -log p(x_i | a_i),   a_i = block(h + p_i, [h, e_1 + p_1, ..., e_n + p_n], V_i)
        L_bow       mean over texts of -1/n sum over distinct words w of log softmax(max over words i of logits_i)[w]

    h is the embedding (what pooling makes, before projection and norm), p positions, e input embeddings, and V_i what word i
    may see: h, and every other word with probability 1 - decoder_share, drawn anew for each i, never x_i itself.

    Xiao et al. 2022 (arXiv:2205.12035), sections 3.2 and 3.3; the bag of words is DupMAE's (arXiv:2211.08769), normalised
    and pooled as in the authors' code, where its weight is 0.1. Two things differ from that code: single tokens are hidden
    and not whole words, and the decoder has positions of its own, so that backbones with rotary ones can take part.
    Cost: one pass of the backbone, one layer over the words, an n x n mask per text; logits of all words, 1,024 at a time.

    share            part of the words that is hidden from the encoder
    decoder_share    probability that a word is hidden from the decoder
    bag_of_words     weight of L_bow; 0 leaves it out
    mask_token       null: the tokenizer's own
    """

    trains = ("backbone", "pooling")

    def __init__(
        self,
        *,
        encoder: Encoder,
        share: float = 0.3,
        decoder_share: float = 0.5,
        bag_of_words: float = 0.0,
        mask_token: str | None = None,
    ) -> None:
        super().__init__()
        require_direction(encoder, "bidirectional", "a hidden word is predicted from both sides")
        require_embedding(encoder)
        if not 0 <= decoder_share <= 1:
            raise ConfigError(f"objective.decoder_share={decoder_share}: expected a probability, 0 to 1.")
        if bag_of_words < 0:
            raise ConfigError(f"objective.bag_of_words={bag_of_words}: expected a weight, 0 or more.")
        backbone = backbone_of(encoder)
        self.decoder_share = decoder_share
        self.weights = {"encoder": 1.0, "decoder": 1.0} | ({"bag_of_words": bag_of_words} if bag_of_words else {})
        self.masker = Masker(encoder.tokenizer, share=share, masked=0.8, random=0.1, mask_token=mask_token)
        self.head = LanguageModelHead(backbone)
        self.positions = positions(longest_text(encoder), backbone.hidden_size)
        self.input_norm = nn.LayerNorm(backbone.hidden_size)
        self.block = AttentionBlock(backbone)

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        tokens, seeds, rows = single_texts(batch, seed)
        read, hidden = self.masker(tokens, seeds)
        all_words = words(tokens, self.masker.special)
        targets = {"encoder": count(hidden), "decoder": count(all_words)}
        if "bag_of_words" in self.weights:
            targets["bag_of_words"] = (count(all_words) > 0).long()
        return TokenTask({"text": read}, {"encoder": hidden, "decoder": all_words}, targets, seeds, rows)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        hidden, embedding = states_and_embedding(encoder, task.texts["text"])
        found = Words.of(task.labels["decoder"])
        states = self.decode(embedding, input_embeddings(encoder)(found.ids), found, task.seeds)
        sums = {
            "encoder": masked_loss(self.head, hidden, task.labels["encoder"].ids),
            "decoder": prediction_loss(self.head, states, found.ids),
        }
        if "bag_of_words" in self.weights:
            sums["bag_of_words"] = bag_of_words_loss(self.head, hidden[found.places], found)
        return sums

    def decode(self, embedding: Tensor, inputs: Tensor, found: Words, seeds: Tensor) -> Tensor:
        """Decoder states [M, H] of all words, from embeddings [N, H] and input embeddings [M, H]."""
        place = self.positions(found.positions)
        h = embedding.to(place.dtype)[:, None]
        query = h + found.pad(place)
        context = torch.cat([h, found.pad(self.input_norm(inputs + place))], dim=1)
        visible = self._visible(found, seeds).to(h.device)
        return found.flat(self.block(query, context, visible))

    def _visible(self, found: Words, seeds: Tensor) -> Tensor:
        """[N, U, 1 + U]: the embedding always, and of the other words a sample for each word; on the CPU."""
        counts, longest = found.counts, found.present.shape[1]
        visible = torch.zeros(len(counts), longest, 1 + longest, dtype=torch.bool)
        visible[..., 0] = True
        for text, (n, seed) in enumerate(zip(counts, seeds.tolist(), strict=True)):
            generator = torch.Generator().manual_seed(seed + 1)  # the seed itself drew the encoder's hidden words
            seen = torch.rand(n, n, generator=generator) >= self.decoder_share
            visible[text, :n, 1 : 1 + n] = seen.fill_diagonal_(False)
        return visible


def bag_of_words_loss(head: nn.Module, states: Tensor, found: Words) -> Tensor:
    """Sum over texts of L_bow, from the states [M, H] of their words; logits of a few texts at a time, twice."""
    groups: list[list[int]] = [[]]
    for size in filter(None, found.counts):
        if groups[-1] and sum(groups[-1]) + size > _WORDS:
            groups.append([])
        groups[-1].append(size)
    rows = [sum(group) for group in groups]
    parts = zip(states.split(rows), found.ids.split(rows), groups, strict=True)
    return torch.stack([checkpoint(_bag_of_words, head, *part, use_reentrant=False) for part in parts]).sum()


def _bag_of_words(head: nn.Module, states: Tensor, ids: Tensor, sizes: list[int]) -> Tensor:
    losses = [states.new_zeros((), dtype=exact(states).dtype)]  # no text of the chunk may have a word
    for logits, text in zip(exact(head(states)).split(sizes), ids.split(sizes), strict=True):
        log_p = F.log_softmax(logits.amax(0), dim=-1)
        losses.append(-log_p[text.unique()].sum() / text.numel())
    return torch.stack(losses).sum()
