"""Alignment of a bridge: the language model writes a text from what the connector makes of the encoder's states."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from embedtrain.backbones.bridge import BridgeBackbone, weave
from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.objectives.masked_lm import masked_loss
from embedtrain.objectives.masking import Masker, count, special_ids, words
from embedtrain.objectives.reading import direction_of, longest_text
from embedtrain.objectives.texts import positive_pairs, single_texts
from embedtrain.types import NO_TARGET, RaggedTokens, TokenBatch, TokenTask

Task = Literal["reconstruction", "completion", "both"]


class BridgeAlignment(nn.Module):
    """The language model writes a text again, or its answer, from what the connector makes of the encoder's states.

        L = mean over words b_j of  -log p(b_j | begin, connector(encoder(a)), learned tokens, b_1, ..., b_{j-1})

    Reconstruction: b is the text a itself, of every query and document. Completion: b is the positive of the query a, where
    it has one beside itself. *Both* is the mean of the two. Words are read with teacher forcing, some of them hidden, so that
    they have to come from the encoder. A language model that looks both ways sees b_j unless it is hidden, so there the hidden
    words alone are predicted, each from the place before it, as in MaskedNextToken.

    Man et al. 2025 (arXiv:2501.00874), stage 1. In the authors' code attention looks both ways, half of what the language model
    reads is replaced by a mask token and half of it, drawn apart, is not attended to, and words that can be seen are predicted
    as well. Words of b are those of the language model's tokenizer, of the text that the encoder's tokens spell: cut where they
    are cut, without a prompt that pooling leaves out, without the special tokens.
    Cost: one pass of both models over a and of the language model over b; logits of the predicted words, 1,024 at a time.

    task            reconstruction | completion | both
    share           of the words that the encoder reads for reconstruction, the part hidden from it
    decoder_share   of the words that the language model reads, the part hidden from it
    mask_token      of the language model, for hidden words; null: its tokenizer's own
    """

    trains = ("backbone",)

    def __init__(
        self,
        *,
        encoder: Encoder,
        task: Task = "both",
        share: float = 0.0,
        decoder_share: float = 0.5,
        mask_token: str | None = None,
    ) -> None:
        super().__init__()
        if task not in get_args(Task):
            raise ConfigError(f"objective.task={task!r}: expected one of {', '.join(get_args(Task))}.")
        bridge = bridge_of(encoder)
        self.causal = direction_of(bridge.llm) == "causal"
        if not self.causal and not decoder_share:
            raise ConfigError(
                "objective.decoder_share=0: a language model that looks both ways sees every word that it is to write. Hide "
                "some, or set backbone.llm.attention=causal for this stage."
            )
        self.weights = {"reconstruction": 0.5, "completion": 0.5} if task == "both" else {task: 1.0}
        self.read_by = encoder.tokenizer
        self.written_by = _writer(bridge, longest_text(encoder))
        self.special, self.written_special = special_ids(encoder.tokenizer), special_ids(self.written_by)
        self.masker = _masker(encoder.tokenizer, share, None)
        self.decoder_masker = _masker(self.written_by, decoder_share, mask_token)
        self.head = LanguageModelHead(bridge.llm)

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask:
        """Items: of each text that is to be written again, then of each pair that is to be completed."""
        parts = []
        if "reconstruction" in self.weights:
            texts, seeds, rows = single_texts(batch, seed)
            read = texts if self.masker is None else self.masker(texts, seeds)[0]
            parts.append(self._items("reconstruction", read, texts, seeds, rows))
        if "completion" in self.weights:
            queries, documents, seeds, rows = positive_pairs(batch, seed, distinct=True)
            parts.append(self._items("completion", queries, documents, seeds, rows))
        return TokenTask.cat(parts)

    def forward(self, encoder: Encoder, task: TokenTask) -> dict[str, Tensor]:
        bridge, written = bridge_of(encoder), task.texts["written"]
        table: nn.Module = bridge.llm.hf_model.get_input_embeddings()
        known = bridge.connect(task.texts["read"])
        parts = [(known.values, known.offsets), (table(written.ids).to(known.values.dtype), written.offsets)]
        if (begin := self.written_by.hf.bos_token_id) is not None:
            first = table(written.ids.new_full((len(written),), begin)).to(known.values.dtype)
            parts.insert(0, (first, torch.arange(len(written) + 1)))
        run = weave(parts)
        states = bridge.read(run)
        assert isinstance(states, Tensor)
        before = states[run.places[-1] - 1]  # what stands before a word predicts it
        return {term: masked_loss(self.head, before, task.labels[term].ids) for term in self.weights}

    def _items(
        self, term: str, read: RaggedTokens, texts: RaggedTokens, seeds: Tensor, rows: tuple[str, ...]
    ) -> TokenTask:
        """`read` by the encoder, `texts` written by the language model."""
        written = self._written(texts)
        shown, hidden = (written, None) if self.decoder_masker is None else self.decoder_masker(written, seeds + 1)
        labels = words(written, self.written_special) if self.causal or hidden is None else hidden
        nothing = replace(written, ids=torch.full_like(written.ids, NO_TARGET))
        asked = {name: labels if name == term else nothing for name in self.weights}
        targets = {name: count(tokens) for name, tokens in asked.items()}
        return TokenTask({"read": read, "written": shown}, asked, targets, seeds, rows)

    def _written(self, texts: RaggedTokens) -> RaggedTokens:
        """The language model's tokens of what the encoder's tokens spell, with its end of text behind them."""
        if not len(texts):
            return texts
        spelt = words(texts, self.special).ids
        ids = [part[part != NO_TARGET] for part in spelt.split(texts.lengths.tolist())]
        spoken = self.read_by.hf.batch_decode(ids, skip_special_tokens=True)
        hf, room = self.written_by.hf, self.written_by.max_length["document"] - 1
        found = hf(spoken, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        return RaggedTokens.from_lists([[*text, hf.eos_token_id] for text in found])


def bridge_of(encoder: Encoder) -> BridgeBackbone:
    """Raises ConfigError for a backbone of another kind."""
    if not isinstance(encoder.backbone, BridgeBackbone):
        raise ConfigError(
            f"objective: it aligns the two models of a bridge, and the backbone is a {type(encoder.backbone).__name__}. Use "
            "backbone=bridge, or another objective."
        )
    return encoder.backbone


def _writer(bridge: BridgeBackbone, longest: int) -> TextTokenizer:
    """The language model's tokenizer, for texts of at most `longest` tokens."""
    hf = bridge.llm.tokenizer()
    if hf.eos_token_id is None:
        raise ConfigError(
            f"backbone.llm.name: the tokenizer of {bridge.llm.name} has no EOS, which ends what it writes."
        )
    return TextTokenizer(tokenizer=hf, prompts=Prompts(), max_query_length=longest, max_document_length=longest)


def _masker(tokenizer: TextTokenizer, share: float, mask_token: str | None) -> Masker | None:
    """Every hidden word becomes the mask token; None where none is hidden."""
    return Masker(tokenizer, share=share, masked=1.0, random=0.0, mask_token=mask_token) if share else None
