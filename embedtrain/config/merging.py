"""What `embedtrain merge` is asked: a method, models, and its parameters; on the command line or in a file of mergekit.

    embedtrain merge method=ties base=BAAI/bge-small-en-v1.5 models=[runs/a,runs/b] density=0.3 output=merged
    embedtrain merge config=merge.yaml output=merged

    # merge.yaml, as mergekit reads it
    merge_method: ties
    base_model: BAAI/bge-small-en-v1.5
    models:
      - {model: runs/a, parameters: {weight: 1.0, density: 0.3}}
      - {model: runs/b, parameters: {weight: 0.5, density: 0.3}}
    parameters: {normalize: true, lambda: 1.0}
    dtype: bfloat16

Imports no torch: whatever is wrong with the request is said at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from embedtrain.config.compose import ROOT
from embedtrain.config.explain import bad_syntax, did_you_mean
from embedtrain.config.schema import settings
from embedtrain.config.signatures import fits, signature, words
from embedtrain.config.validate import report
from embedtrain.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
_OWN_KEYS = ("config", "method", "models", "base", "dtype")
_OF_FILE = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "name")
# Parameters of mergekit that change its memory, and nothing of the result.
_WITHOUT_EFFECT = ("int8_mask",)


@dataclass(frozen=True)
class Kind:
    """What is known of a method before it is imported."""

    target: str
    base: bool = False  # it reads a base
    reads: tuple[str, ...] = ()  # parts of the config that it reads besides: data, loss, evaluation
    # Where mergekit has another default, what its files mean when they are silent.
    in_mergekit: Mapping[str, Any] = field(default_factory=dict)


_M = "embedtrain.merging.methods"
METHODS: dict[str, Kind] = {
    "linear": Kind(f"{_M}.linear.Linear"),
    "slerp": Kind(f"{_M}.slerp.Slerp"),
    "task_arithmetic": Kind(f"{_M}.task_arithmetic.TaskArithmetic", base=True),
    "ties": Kind(f"{_M}.ties.Ties", base=True, in_mergekit={"density": 1.0}),
    "dare_linear": Kind(f"{_M}.dare.DareLinear", base=True, in_mergekit={"density": 1.0}),
    "dare_ties": Kind(f"{_M}.dare.DareTies", base=True, in_mergekit={"density": 1.0}),
    "delta_guided": Kind(f"{_M}.delta_guided.DeltaGuided", base=True),
    "fisher": Kind(f"{_M}.fisher.Fisher", reads=("data", "loss")),
    "regmean": Kind(f"{_M}.regmean.RegMean", reads=("data",)),
    "greedy_soup": Kind(f"{_M}.greedy_soup.GreedySoup", reads=("evaluation",)),
    "self_positioning": Kind(f"{_M}.self_positioning.SelfPositioning", base=True, reads=("data", "loss")),
}


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """A merge that can be had, as far as its words tell."""

    method: str
    models: tuple[str, ...]  # folders, runs, checkpoints, hub names; `*` not yet spelt out
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the method
    dtype: str | None = None  # of the weights that are written; None: that of the first model

    @property
    def kind(self) -> Kind:
        return METHODS[self.method]


def take_request(overrides: list[str]) -> MergeRequest:
    """The request of a command line, whose words are taken out of `overrides`: the rest is for the config.

    Raises ConfigError with everything that is wrong with it.
    """
    given = {}
    for text in list(overrides):
        key = text.partition("=")[0]
        if _is_ours(key):
            given[key] = _value(text)
            overrides.remove(text)
    in_file = _from_file(str(given.pop("config"))) if "config" in given else {}
    return _request(in_file | given)


def _is_ours(key: str) -> bool:
    """Whether a key is no part of a run's config, and so of the merge."""
    frame = {name.partition(".")[0] for name in settings()}
    plain = key.isidentifier()
    return plain and key not in frame and key != "recipe" and not (ROOT / "configs" / key).is_dir()


def _value(text: str) -> Any:
    try:
        override = OverridesParser.create().parse_override(text)
        if override.is_sweep_override():
            raise ConfigError(bad_syntax(text))
        return override.value()
    except HydraException as error:
        raise ConfigError(bad_syntax(text, error)) from None


def _request(given: Mapping[str, Any]) -> MergeRequest:
    parameters = {key: value for key, value in given.items() if key not in _OWN_KEYS}
    method, models, base, dtype = (given.get(key) for key in ("method", "models", "base", "dtype"))
    if method is None:
        raise ConfigError(f"method: required, and not set. One of {', '.join(METHODS)}.")
    if method not in METHODS:
        raise ConfigError(
            f"method={method}: there is no such method.{did_you_mean(str(method), METHODS)} There are: {', '.join(METHODS)}."
        )
    kind = METHODS[method]
    named = [models] if isinstance(models, str) else models
    problems = [*_about_models(method, kind, named, base), *_about_parameters(method, kind, parameters)]
    if dtype is not None and dtype not in DTYPES:
        problems.append(f"dtype={dtype}: expected one of {', '.join(DTYPES)}.")
    if problems:
        raise ConfigError(report(problems))
    assert named is not None
    own = {("lambda_" if key == "lambda" else key): value for key, value in parameters.items()}
    return MergeRequest(method=method, models=tuple(named), base=base, parameters=own, dtype=dtype)


def _about_models(method: str, kind: Kind, models: Any, base: Any) -> Iterator[str]:
    if not isinstance(models, list) or not models or not all(isinstance(name, str) for name in models):
        yield f"models: expected run directories, model folders or hub names as a list, models=[runs/a,runs/b], got {models!r}."
    elif len(models) == 1 and not kind.base and not any(c in models[0] for c in "*?"):
        yield f"models: {method} wants at least two, got {models[0]}."
    if kind.base and not isinstance(base, str):
        yield f"base: required by {method}: what all models were trained from, a folder or a hub name."
    if not kind.base and base is not None:
        with_base = ", ".join(name for name, other in METHODS.items() if other.base)
        yield f"base={base}: {method} reads no base. Leave it out, or use one of {with_base}."


def _about_parameters(method: str, kind: Kind, parameters: Mapping[str, Any]) -> Iterator[str]:
    takes = signature(kind.target)
    known = {name.removesuffix("_"): parameter for name, parameter in takes.parameters.items()}
    for key, value in parameters.items():
        if key not in known:
            keys = [*known, *_OWN_KEYS]
            yield f"{key}: {method} has no parameter {key!r}.{did_you_mean(key, keys)} It has: {', '.join(known) or 'none'}."
        elif not fits(value, known[key].annotation, takes.aliases or {}):
            yield f"{key}: expected {words(known[key].annotation, takes.aliases or {})}, got {value!r}."


# ------------------------------------------------------------------------------------------------------- mergekit


def _from_file(name: str) -> dict[str, Any]:
    """A file of mergekit in the words of the command line. Raises ConfigError for what cannot be read so."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"config={name}: there is no file {path.resolve()}.")
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path.resolve()} is not valid YAML: {error}") from None
    if not isinstance(node, dict) or "merge_method" not in node:
        raise ConfigError(f"{path.resolve()}: expected a merge_method and models, as mergekit reads them.")
    problems = [
        f"{key!s}: cannot be read here.{did_you_mean(str(key), _OF_FILE)} Known: {', '.join(_OF_FILE)}."
        for key in node
        if key not in _OF_FILE
    ]
    method, base = node["merge_method"], node.get("base_model")
    entries = []
    for number, entry in enumerate(node.get("models") or []):
        if isinstance(entry, dict) and isinstance(entry.get("model"), str):
            entries.append((entry["model"], _plain(entry.get("parameters"))))
        else:
            problems.append(f"models[{number}]: expected {{model: ..., parameters: ...}}, got {entry!r}.")
    common = _plain(node.get("parameters"))
    for where, parameters in (("parameters", common), *((f"models.{name}", own) for name, own in entries)):
        problems += [
            f"{where}.{key}: one number for a whole model is read; values by layer or by name of the tensor are not."
            for key, value in parameters.items()
            if isinstance(value, list | dict)
        ]
    if problems:
        raise ConfigError(report([f"{path.resolve()}: {problem}" for problem in problems]))
    if method == "slerp" and base is not None:  # its first model, at t = 0
        entries.sort(key=lambda entry: entry[0] != base)
        base = None
    elif base is not None:  # often listed as a model too, without parameters
        entries = [entry for entry in entries if entry[0] != base]
    found = {"method": method, "models": [name for name, _ in entries]} | common
    found |= {"base": base} if base is not None else {}
    dtype = node.get("out_dtype") or node.get("dtype")
    found |= {"dtype": dtype} if dtype is not None else {}
    defaults = METHODS[method].in_mergekit if method in METHODS else {}
    for key in dict.fromkeys(key for _, own in entries for key in own):
        values = [own.get(key, common.get(key, defaults.get(key))) for _, own in entries]
        if None in values:
            raise ConfigError(f"{path.resolve()}: models: some have the parameter {key}, others have not.")
        found[key] = values
    return dict(defaults) | found


def _plain(parameters: Any) -> dict[str, Any]:
    return {str(key): value for key, value in (parameters or {}).items() if key not in _WITHOUT_EFFECT}
