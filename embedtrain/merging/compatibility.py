"""Do these models belong together? Asked of settings and headers, before a weight is read.

A merged model has one architecture, tokenizer, pooling, set of prompts and maximum length, so all models must have the same.
A base gives weights alone: its architecture, vocabulary and shapes must be those of the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from embedtrain.config.validate import report
from embedtrain.errors import ConfigError
from embedtrain.export.heads import FOLDER
from embedtrain.export.layout import read_json
from embedtrain.merging.inputs import Model
from embedtrain.merging.weights import load_config

# Of a transformers configuration: what says nothing about what the weights compute.
_HOW_IT_WAS_MADE = {
    *("dtype", "torch_dtype", "transformers_version", "architectures", "auto_map", "use_cache", "return_dict"),
    *("output_attentions", "output_hidden_states", "id2label", "label2id", "problem_type", "initializer_range"),
}
_OF_MODELS_ALONE = ("is_causal", "pad_token_id", "eos_token_id", "bos_token_id", "tie_word_embeddings")
_SHOWN = 3  # names of tensors in a message


def refuse_incompatible(models: Sequence[Model], base: Model | None) -> None:
    """Raises ConfigError with everything that differs from the first model: what, and in which model."""
    first, problems = models[0], []
    for other in models[1:]:
        problems += [
            f"models: {other.name} and {first.name} cannot be merged: {problem}"
            for problem in (*_settings(first, other), *_tensors(first, other, both=True))
        ]
    if base is not None:
        problems += [
            f"base: {base.name} is not what {first.name} was trained from: {problem}"
            for problem in (*_of_base(first, base), *_tensors(first, base, both=False))
        ]
    if problems:
        raise ConfigError(report(problems))


def _settings(first: Model, other: Model) -> Iterator[str]:
    for key, (one, two) in _different(_architecture(first), _architecture(other)).items():
        yield f"{key} in config.json is {two!r} there and {one!r} here."
    for key, (one, two) in _different(_said(first), _said(other)).items():
        yield f"{key} is {two!r} there and {one!r} here."
    here, there = _tokenizer(first), _tokenizer(other)
    yield from _words(here.pop("vocabulary"), there.pop("vocabulary"))
    for part, (one, two) in _different(here, there).items():
        yield f"the tokenizers differ in {part}: {_short(two)} there and {_short(one)} here."


def _of_base(first: Model, base: Model) -> Iterator[str]:
    different = _different(_architecture(first), _architecture(base))
    for key, (one, two) in different.items():
        if key not in _OF_MODELS_ALONE:
            yield f"{key} in config.json is {two!r} there and {one!r} here."
    yield from _words(_tokenizer(first)["vocabulary"], _tokenizer(base)["vocabulary"])


def _tensors(first: Model, other: Model, *, both: bool) -> Iterator[str]:
    missing = [name for name in first.weights if name not in other.weights]
    if missing:
        yield f"it lacks {_listed(missing)}."
    more = [name for name in other.weights if name not in first.weights] if both else []
    if more:
        yield f"it alone has {_listed(more)}."
    for name in first.weights:
        if name in other.weights:
            (one, kind), (two, other_kind) = first.weights.header(name), other.weights.header(name)
            if one != two:
                yield f"{name} has shape {list(two)} there and {list(one)} here."
            if kind.is_floating_point != other_kind.is_floating_point:
                yield f"{name} is {other_kind} there and {kind} here."


def _architecture(model: Model) -> dict[str, Any]:
    config = json.loads(load_config(model.weights.transformer).to_json_string(use_diff=False))
    return {
        key: value
        for key, value in config.items()
        if key not in _HOW_IT_WAS_MADE
        and not key.startswith("_")
        and "dropout" not in key
        and not key.endswith("pdrop")
    }


def _said(model: Model) -> dict[str, Any]:
    """Pooling, projection, norm, prompts, lengths, views, as the folder says them."""
    assert model.settings is not None
    found = _plain(model.settings, model.folder)
    prompts = found.pop("prompts")
    # Prompts of single sources are kept where only one of the models has them.
    found |= {f"prompts.{role}": prompts.get(role, "") for role in ("query", "document")}
    heads = model.folder / FOLDER / "heads.json"
    return found | {"embedtrain/heads.json": read_json(heads) if heads.exists() else None}


def _plain(value: Any, root: Path) -> Any:
    """Records as mappings, paths relative to the folder; of what reads weights, that it is there."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), root) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner, root) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, root) for inner in value]
    if isinstance(value, Path):
        return value.relative_to(root).as_posix()
    return callable(value) or value


def _tokenizer(model: Model) -> dict[str, Any]:
    """Its parts; cutting and filling are no part of it, since each program sets them."""
    tokenizer = AutoTokenizer.from_pretrained(model.weights.transformer)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    inner = parts.pop("model")
    inner.pop("vocab")
    shown = {key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")}
    return {"vocabulary": tokenizer.get_vocab(), "model": inner, **shown}


def _words(here: Mapping[str, int], there: Mapping[str, int]) -> Iterator[str]:
    """Tokens whose number is not the same, by the first of them."""
    other = sorted(word for word in here.keys() | there.keys() if here.get(word) != there.get(word))
    if other:
        one, two = here.get(other[0], "missing"), there.get(other[0], "missing")
        yield f"the tokenizers differ in {len(other):,} tokens: {other[0]!r} is {two} there and {one} here."


def _different(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """key -> (value here, value there), for keys whose values are not the same; inside of mappings, by the inner key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*one, *(key for key in two if key not in one)]:
        a, b = one.get(key), two.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and not prefix:
            found |= _different(a, b, f"{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = (a, b)
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
