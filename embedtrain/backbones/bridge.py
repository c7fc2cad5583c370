"""A bridge of two models: an encoder reads the words, a language model reads what a connector makes of its states.

    ids [S] --encoder--> states [S, H] --connector--> vectors [S, H'] --language model--> states [S, H']

An encoder that knows a hundred languages so lends them to a language model that knows one of them well. Both halves are
`TransformerBackbone`s, each with its own kernel, direction of attention and adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedtrain.backbones.direction import Direction
from embedtrain.backbones.loading import Weights
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.types import RaggedTokens


class BridgeBackbone(nn.Module):
    """An encoder, a connector and a language model in a row (LUSIFER, Man et al. 2025, arXiv:2501.00874).

    What the language model reads of a text of n tokens is n connected states and, behind them, `learned_tokens` vectors that
    are the same for every text. All of them see each other as its attention allows, and the states of the n tokens come out,
    one for each token that a pooling knows of. (The authors' mean has the learned token's state in it as well, and stands it
    behind the padding.) Tokenizer and longest text are the encoder's.

    encoder: the first half, read at its last hidden states.
    llm: the second half, which takes vectors in place of its input embeddings.
    learned_tokens: vectors behind the connected states of each text.
    connector: a folder with the connector's weights, as an export writes it (`bridge/`); None: they are new.
    """

    def __init__(
        self,
        *,
        encoder: TransformerBackbone,
        llm: TransformerBackbone,
        learned_tokens: int = 1,
        connector: str | None = None,
    ) -> None:
        super().__init__()
        if learned_tokens < 0:
            raise ConfigError(f"backbone.learned_tokens: expected 0 or more, got {learned_tokens}.")
        self.encoder = encoder
        self.llm = llm
        self.connector = Connector(encoder.hidden_size, llm.hidden_size, learned_tokens)
        self.hidden_size: int = llm.hidden_size
        if connector is not None and self.weights == "pretrained":
            self.connector.read(Path(connector))

    @property
    def name(self) -> str:
        """Of both halves, for messages."""
        return f"{self.encoder.name} + {self.llm.name}"

    @property
    def halves(self) -> tuple[TransformerBackbone, TransformerBackbone]:
        return self.encoder, self.llm

    @property
    def architecture(self) -> str:
        """The classes of both halves."""
        return f"{type(self.encoder.hf_model).__name__} + {type(self.llm.hf_model).__name__}"

    @property
    def config(self) -> Any:
        """The transformers configuration of the language model, whose states come out."""
        return self.llm.config

    @property
    def vocab_size(self) -> int:
        """Of the encoder, whose tokens go in."""
        return int(self.encoder.config.vocab_size)

    @property
    def weights(self) -> Weights:
        return self.llm.weights

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def direction(self) -> Direction | None:
        """As a whole: a text that one half sees from both sides is seen from both sides. None on the meta device."""
        seen = {self.encoder.direction, self.llm.direction}
        return None if None in seen else "bidirectional" if "bidirectional" in seen else "causal"

    @property
    def kernel(self) -> str:
        return "padded" if "padded" in (self.encoder.kernel, self.llm.kernel) else "ragged"

    @property
    def longest_text(self) -> int | None:
        """Tokens that both halves have positions for; None: no limit."""
        own, behind = self.encoder.longest_text, self.llm.longest_text
        limits = [own, None if behind is None else behind - self.connector.num_learned]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def hf_model(self) -> Halves:
        """The live weights of both halves and the connector, under the names of `merged_model`."""
        return Halves(self.encoder.hf_model, self.connector, self.llm.hf_model)

    def merged_model(self) -> Halves:
        """Plain models with the adapters, if any, added to the weights. Nothing here changes."""
        return Halves(self.encoder.merged_model(), self.connector, self.llm.merged_model())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's."""
        return self.encoder.tokenizer()

    def refuse_head(self, kind: str, parameters: Collection[str]) -> None:
        """Raises ConfigError for a pooling head that takes both ends of a backbone for one model."""
        needed = {"lm_head": "logits over the vocabulary", "num_query_tokens": "input vectors of its own"}
        for parameter, what in needed.items():
            if parameter in parameters:
                raise ConfigError(
                    f"pooling: {kind} needs {what}, and so one model at both ends. In {self.name} tokens go in by the first "
                    "and states come out of the second. Use mean, or another head that reads states alone."
                )

    def forward(
        self, tokens: RaggedTokens, *, all_layers: bool = False, routing: bool = False
    ) -> Tensor | list[Tensor]:
        """The last hidden states [S, H'] of the language model at the texts' own tokens; options as of `TransformerBackbone`.

        all_layers: of the connected states, then of every layer of the language model. routing: of its experts.
        """
        run = self.connect(tokens)
        states = self.read(run, all_layers=all_layers, routing=routing)
        own = run.places[0]
        return [state[own] for state in states] if isinstance(states, list) else states[own]

    def connect(self, tokens: RaggedTokens) -> Woven:
        """What the language model reads of N texts: of each its connected states, then the learned tokens."""
        if tokens.unseen is not None:
            raise ConfigError(
                "encoder.attend_to_masks=false: between a query and the learned tokens of a bridge there would be masks that no "
                "token sees. Set it to true, or encoder.query_augmentation=null."
            )
        connected = self.connector(self.encoder(tokens))
        learned = self.connector.learned.to(connected.dtype).repeat(len(tokens), 1)
        ends = torch.arange(len(tokens) + 1) * self.connector.num_learned
        return weave([(connected, tokens.offsets), (learned, ends)])

    def read(self, run: Woven, *, all_layers: bool = False, routing: bool = False) -> Tensor | list[Tensor]:
        """States of the language model, one for each vector of `run`."""
        spans = torch.stack([run.offsets[:-1], run.offsets[1:]], dim=1)
        ids = torch.zeros(int(run.offsets[-1]), dtype=torch.int64, device=run.values.device)  # are not read
        table: Any = self.llm.hf_model.get_input_embeddings()
        return self.llm(
            RaggedTokens(ids, run.offsets, spans),
            all_layers=all_layers,
            routing=routing,
            inputs=run.values.to(table.weight.dtype),
        )

    def finish(self, states: Tensor) -> Tensor:
        """As of the language model: what it would give out, were it cut after the layer of `states`."""
        return self.llm.finish(states)


class Connector(nn.Module):
    """W2 relu(W1 x + b1) + b2 from [.., in] to [.., out], and the vectors that stand behind every text, [K, out]."""

    def __init__(self, in_size: int, out_size: int, num_learned: int) -> None:
        super().__init__()
        self.num_learned = num_learned
        self.inner = nn.Linear(in_size, in_size)
        self.outer = nn.Linear(in_size, out_size)
        self.learned = nn.Parameter(torch.randn(num_learned, out_size))  # as large at the start as the authors have it

    def forward(self, states: Tensor) -> Tensor:
        own = self.inner.weight.dtype
        if not torch.is_autocast_enabled(states.device.type):
            states = states.to(own)  # frozen bf16 states meet fp32 weights
        return self.outer(F.relu(self.inner(states)))

    def read(self, folder: Path) -> None:
        """Takes the weights of a folder. Raises CheckpointError where it has none, or of another size."""
        file = folder / "model.safetensors"
        if not file.is_file():
            raise CheckpointError(f"backbone.connector: {file.absolute()} is not there.")
        found, own = load_file(file), self.state_dict()
        shapes, wanted = ({k: list(v.shape) for k, v in tensors.items()} for tensors in (found, own))
        if shapes != wanted:
            raise CheckpointError(
                f"backbone.connector: {file} has {shapes}, expected {wanted}. It belongs to other models, or to another "
                "number of backbone.learned_tokens."
            )
        self.load_state_dict(found)


class Halves(nn.Module):
    """Encoder, connector and language model under the names that their weights have in a stage's hand-over and an export."""

    def __init__(self, encoder: PreTrainedModel, connector: Connector, llm: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.llm = llm


@dataclass(frozen=True)
class Woven:
    """N texts as one flat run of vectors, each put together from several parts."""

    values: Tensor  # [S, H]
    offsets: Tensor  # [N + 1] int64, CPU
    places: tuple[Tensor, ...]  # by part, where its rows lie in the run; on the device


def weave(parts: Sequence[tuple[Tensor, Tensor]]) -> Woven:
    """Text by text what each part has of it, in the order of the parts: (rows [S_p, H], offsets [N + 1], CPU) each."""
    lengths = torch.stack([offsets.diff() for _, offsets in parts])  # [P, N]
    ends = lengths.sum(0).cumsum(0)
    before = (ends - lengths.sum(0)) + lengths.cumsum(0) - lengths  # where each part of each text begins
    device = parts[0][0].device
    places = tuple(
        (torch.arange(int(offsets[-1])) + torch.repeat_interleave(start - offsets[:-1], own)).to(device)
        for (_, offsets), start, own in zip(parts, before, lengths, strict=True)
    )
    order = torch.argsort(torch.cat(places))
    return Woven(torch.cat([rows for rows, _ in parts])[order], torch.cat([ends.new_zeros(1), ends]), places)
