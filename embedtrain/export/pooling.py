"""Pooling heads as modules of a sentence-transformers folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from embedtrain.data.prompts import PLACEHOLDER
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export import layout
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.mean import MeanPooling

_MODES: dict[type[nn.Module], str] = {
    ClsPooling: "cls",
    EosPooling: "lasttoken",
    MeanPooling: "mean",
}
# These read one token, at an end of the text, whether the prompt is pooled or not.
_ONE_TOKEN = (ClsPooling, EosPooling)
_FIRST_WORDS = ("text", "The", "a", "1", "é", "(")


def check_pooling(pooling: nn.Module) -> None:
    """Raises ConfigError for a head that no module of sentence-transformers stands for."""
    if type(pooling) not in _MODES:
        raise ConfigError(
            f"pooling: {type(pooling).__name__} cannot be exported: sentence-transformers has no module that computes it. "
            f"Can be exported: {', '.join(sorted(kind.__name__ for kind in _MODES))}."
        )


def write_pooling(encoder: Encoder, folder: Path, dtype: torch.dtype, notes: list[str]) -> list[tuple[str, str]]:
    """Write the modules that pool, numbered from 1, and return them as (class, name) for modules.json."""
    pooling = encoder.pooling
    hidden_size: int = encoder.backbone.hidden_size  # type: ignore[assignment]
    config = layout.pooling_config(
        _MODES[type(pooling)], hidden_size=hidden_size, include_prompt=_include_prompt(encoder)
    )
    layout.write_json(folder / "1_Pooling" / "config.json", config)
    return [(layout.POOLING, "Pooling")]


def ships_code(pooling: nn.Module) -> bool:
    """Whether the folder holds a module of its own, so that loading it needs `trust_remote_code=True`."""
    return False


def _include_prompt(encoder: Encoder) -> bool:
    return encoder.tokenizer.prompts.pool_prompt or isinstance(encoder.pooling, _ONE_TOKEN)


def check_prompt_borders(encoder: Encoder) -> None:
    """Raises ConfigError when prompt tokens are left out of pooling and sentence-transformers would leave out others.

    It counts the tokens of the prompt alone; a prompt that ends in a blank may share its last token with the text.
    """
    if _include_prompt(encoder):
        return
    tokenizer = encoder.tokenizer
    for role, template in tokenizer.prompts.templates.items():
        prompt = template.replace(PLACEHOLDER, "the task")
        alone = _tokens_alone(tokenizer, prompt)
        for word in _FIRST_WORDS if prompt else ():
            together = _tokens_before_text(tokenizer, prompt, word)
            if alone != together:
                raise ConfigError(
                    f"prompts.{role}: {template!r} cannot be exported with prompts.pool_prompt=false: alone it has {alone} "
                    f"tokens, before {word!r} {together}, and sentence-transformers leaves out as many as it has alone. Let "
                    "the prompt end in a character that never joins a word, such as ':' or a line break, without a blank."
                )


def _tokens_alone(tokenizer: TextTokenizer, prompt: str) -> int:
    ids = tokenizer.hf(prompt)["input_ids"]
    closing = len(ids) > 0 and (ids[-1] in tokenizer.hf.all_special_ids)
    return len(ids) - closing


def _tokens_before_text(tokenizer: TextTokenizer, prompt: str, text: str) -> int:
    encoded = tokenizer.hf(prompt + text, return_offsets_mapping=True, return_special_tokens_mask=True)
    pairs = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    return next(i for i, ((_, end), special) in enumerate(pairs) if end > len(prompt) and not special)
