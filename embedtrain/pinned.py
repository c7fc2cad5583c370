"""Configurations of published models that ship with the recipes, so that shapes are known without a model hub.

    recipes/models/<owner>/<name>.json
        {"config": {"model_type": ..., ...},     what of the model's config.json decides shapes
         "tokens": {"eos_token": "</s>", ...},   the special tokens of its tokenizer
         "longest": 512,                         tokens that the tokenizer lets through; null: no limit
         "embedding_dim": 768}                   of the finished model, where it can be a teacher

A stand-in is a folder made of one: the configuration, and a tokenizer that knows the special tokens and no word. `check`
counts parameters by it and reads no text with it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

import embedtrain.backbones.own_models  # noqa: F401  (families that transformers does not have)
from embedtrain.config.compose import ROOT
from embedtrain.errors import ConfigError

FOLDER = ROOT / "recipes" / "models"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class PinnedModel:
    """What is known of a published model without reading it."""

    name: str
    config: dict[str, Any]  # empty where only the finished model's dimension is known
    tokens: dict[str, str]  # "eos_token": "</s>"
    longest: int | None
    embedding_dim: int | None

    def transformers_config(self, **changes: Any) -> Any:
        """With some keys changed."""
        known = {key: value for key, value in self.config.items() if key != "model_type"}
        return AutoConfig.for_model(self.config["model_type"], **known | changes)


def pinned(name: str) -> PinnedModel | None:
    """What ships of a model by its name on the hub; None where nothing does.

    Raises ConfigError for a file that is not what the top of this module says.
    """
    path = FOLDER / f"{name}.json"
    if not _NAME.fullmatch(name) or not path.is_file():
        return None
    try:
        node = json.loads(path.read_text(encoding="utf-8"))
        found = PinnedModel(name, node["config"], node["tokens"], node["longest"], node["embedding_dim"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected an object with config, tokens, longest and embedding_dim: {error!r}"
        ) from error
    return found


@contextmanager
def stand_in(model: PinnedModel) -> Iterator[str]:
    """A folder that a backbone of random weights is built from."""
    with tempfile.TemporaryDirectory(prefix=f"{model.name.rpartition('/')[2]}-") as folder:
        model.transformers_config().save_pretrained(folder)
        names = {name: token for name, token in model.tokens.items() if token}
        words = list(dict.fromkeys([*names.values(), "[unknown]"]))
        plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unknown]"))
        longest = {} if model.longest is None else {"model_max_length": model.longest}
        PreTrainedTokenizerFast(tokenizer_object=plain, **longest, **names).save_pretrained(folder)
        yield folder
