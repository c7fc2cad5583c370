"""What a reader of a published layout says of a model's body, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedtrain.errors import CheckpointError

# Settings that descendants of BERT have under BERT's names.
BERT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """The same model in words of transformers."""

    layout: str  # for messages
    config: Any  # of transformers
    renamed: Mapping[str, str] = field(
        default_factory=dict
    )  # pattern in the published keys -> what stands there in ours
    heads: tuple[str, ...] = ()  # how keys begin that are no part of the body
    pooler: tuple[str, ...] = ("pooler.",)  # of layers that no embedding passes

    def check(self, name: str, report: Mapping[str, Any]) -> None:
        """Every weight of the model was in the folder, and the folder has no other. `report` is that of `from_pretrained`.

        Raises CheckpointError naming the keys.
        """
        own = (*self.heads, *self.pooler)
        unexpected = sorted(key for key in report["unexpected_keys"] if not key.startswith(own))
        missing = sorted(report["missing_keys"])
        shapes = [
            f"{key} {list(found)}, expected {list(wanted)}" for key, found, wanted in sorted(report["mismatched_keys"])
        ]
        if unexpected or missing or shapes:
            raise CheckpointError(
                f"{name}: not the weights of {self.layout}. {keys_of(missing=missing, unexpected=unexpected, shapes=shapes)}"
            )


def keys_of(**lists: list[str]) -> str:
    """`Missing: a, b. Unexpected: c.`: the first few of each, how many more there are, and nothing of an empty list."""
    said = []
    for kind, keys in lists.items():
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            said.append(f"{kind.capitalize()}: {', '.join(keys[:5])}{more}.")
    return " ".join(said)


def require(layout: str, raw: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """`raw` has the expected value of each key, where it has the key. Raises CheckpointError naming those it has not."""
    other = {key: raw[key] for key, value in expected.items() if key in raw and raw[key] != value}
    if other:
        wanted = {key: expected[key] for key in other}
        raise CheckpointError(
            f"config.json of {layout} has {other}, which transformers' model cannot express; it can with {wanted}."
        )
