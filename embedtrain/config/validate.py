"""Everything that is wrong with a config, at once, before any weight is read.

    frame         keys that nothing reads, values out of their limits
    components    `_target_` leads somewhere, every parameter exists, fits and is there
    missing       values that are required and not set
    relations     what must hold between keys (rules.py)

Each message starts with the key as the user writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from embedtrain.config.explain import did_you_mean, unknown_key, yaml_no
from embedtrain.config.findings import kind_of
from embedtrain.config.rules import paths, relations, world_size
from embedtrain.config.schema import settings
from embedtrain.config.signatures import Signature, TargetError, fits, signature, words
from embedtrain.config.stages import stage_configs, stage_problems, stage_regrets
from embedtrain.errors import ConfigError

MISSING = "???"

# The components of a run, and what the program adds to their parameters when it builds them.
OFFERED_TO_POOLING = frozenset(
    {"hidden_size", "num_layers", "num_routes", "vocab_size", "special_ids", "punctuation_ids", "lm_head"}
)
COMPONENTS: dict[str, frozenset[str]] = {
    "backbone": frozenset(),
    "pooling": OFFERED_TO_POOLING,
    "loss": frozenset(),
    "objective": frozenset({"encoder"}),
    "miner": frozenset(),
    "data.neighbourhoods": frozenset(),
    "training.refresh": frozenset(),
}
COLLECTIONS: dict[str, frozenset[str]] = {
    "encoder.views": OFFERED_TO_POOLING,
    "teachers": frozenset({"name"}),
    "data.sources": frozenset(),
    "evaluation.evaluators": frozenset(),
    "trackers": frozenset(),
    "training.callbacks": frozenset(),
}


def validate(config: dict[str, Any], problems: Sequence[str] = (), *, world: int | None = None) -> list[str]:
    """Check a resolved config. `problems`: what was found while it was put together; `world`: ranks, if not this launch's.

    Returns warnings: settings that work and may be regretted. Raises ConfigError with all problems; with
    training.strict the warnings are among them.
    """
    found = [*problems, *stage_problems(config)]
    wrong, warnings = _of_all_stages(config, world or world_size(), sound=not found)
    found += wrong
    if warnings and config["training"]["strict"]:
        found += [f"{warning} (an error because of training.strict)" for warning in warnings]
    if found:
        raise ConfigError(report(found))
    return warnings


def _of_all_stages(config: dict[str, Any], world: int, *, sound: bool) -> tuple[list[str], list[str]]:
    """(problems, warnings) of every stage. What is said of all of them is the run's own."""
    checked = {name: _of_one(settings, world, sound=sound) for name, settings in stage_configs(config).items()}
    said: tuple[list[str], list[str]] = ([], list(stage_regrets(config)))
    for kind in (0, 1):
        everywhere = set.intersection(*(set(texts[kind]) for texts in checked.values()))
        for number, (name, texts) in enumerate(checked.items()):
            for text in texts[kind]:
                if text not in everywhere:
                    said[kind].append(f"stages.{name}.{text}")
                elif number == 0:
                    said[kind].append(text)
    return said


def _of_one(config: dict[str, Any], world: int, *, sound: bool) -> tuple[list[str], list[str]]:
    """`sound`: nothing is wrong with the keys so far. Relations read many of them, and are asked once they are right."""
    found = [*_frame(config), *_missing(config), *_components(config)]
    return relations(config, world) if sound and not found else (found, [])


def validate_evaluation(config: dict[str, Any], problems: Sequence[str] = ()) -> None:
    """Check what measuring a model reads of a config: the evaluators. The rest of it may be incomplete.

    Raises ConfigError with all problems.
    """
    found = [*problems, *_frame(config)]
    read = [*_missing(config), *_components(config), *(finding.text for finding in paths(config, 1))]
    found += [problem for problem in read if problem.startswith(("evaluation", "data.path"))]
    if not found and not any(node is not None for node in config["evaluation"]["evaluators"].values()):
        found.append(
            "evaluation.evaluators: empty. Choose some: evaluation=beir evaluation.evaluators.beir.path=<folder>"
        )
    if found:
        raise ConfigError(report(found))


def validate_mining(config: dict[str, Any], problems: Sequence[str] = ()) -> None:
    """Check what `embedtrain mine` reads of a config: sources, miner, and the encoder where the miner searches by it.

    The rest of it may be incomplete. Raises ConfigError with all problems.
    """
    found = [*problems, *_frame(config)]
    miner = config["miner"]
    model: tuple[str, ...] = ("backbone", "pooling", "encoder", "prompts")
    if miner.get("model") or kind_of(miner.get("search")) == "BM25":
        model = ()
    read = [*_missing(config), *_components(config), *(finding.text for finding in paths(config, 1))]
    found += [problem for problem in read if problem.startswith(("miner", "data", *model))]
    if not found and not any(node is not None for node in config["data"]["sources"].values()):
        found.append("data.sources: empty. Name what to mine for: data=pairs data.path=<file>")
    if found:
        raise ConfigError(report(found))


def validate_merging(config: dict[str, Any], reads: Sequence[str], problems: Sequence[str] = ()) -> None:
    """Check what `embedtrain merge` reads of a config: evaluators where there are any, and what the method `reads` of data,
    loss and evaluation. Sources may be left out, for those of the runs. Raises ConfigError with all problems.
    """
    found = [*problems, *_frame(config)]
    read = [*_missing(config), *_components(config), *(finding.text for finding in paths(config, 1))]
    found += [problem for problem in read if problem.startswith(("evaluation", *reads))]
    measured = any(node is not None for node in config["evaluation"]["evaluators"].values())
    if not found and "evaluation" in reads and not measured:
        found.append(
            "evaluation.evaluators: empty, and the method chooses by what they say. Choose some: evaluation=beir "
            "evaluation.evaluators.beir.path=<folder>"
        )
    if found:
        raise ConfigError(report(found))


def report(problems: Sequence[str]) -> str:
    """One problem as it is; several as a numbered list."""
    if len(problems) == 1:
        return problems[0]
    lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
    return f"{len(problems)} problems in the configuration:\n{lines}"


def get(config: dict[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    node: Any = config
    for name in key.split("."):
        node = node[name]
    return node


def _frame(config: dict[str, Any]) -> Iterator[str]:
    known = settings()
    yield from _unknown(config, known, "")
    for key, field in known.items():
        try:
            value = get(config, key)
        except (KeyError, TypeError):
            yield f"{key}: not there. Every key of the frame must be; it was taken out with ~ or null."
            continue
        if value is None or value == MISSING:
            continue
        limits = field.metadata
        if limits["choices"] and value not in limits["choices"]:
            hint = yaml_no(value) or did_you_mean(str(value), limits["choices"])
            yield f"{key}: expected one of {', '.join(limits['choices'])}, got {value!r}.{hint}"
        for name, holds in (
            ("at_least", lambda limit, v=value: v >= limit),
            ("above", lambda limit, v=value: v > limit),
            ("at_most", lambda limit, v=value: v <= limit),
        ):
            limit = limits[name]
            if limit is not None and isinstance(value, int | float) and not holds(limit):
                yield f"{key}: must be {name.replace('_', ' ')} {limit:g}, got {value!r}."


def _unknown(node: dict[str, Any], known: dict[str, Any], prefix: str) -> Iterator[str]:
    level = {key[len(prefix) :].partition(".")[0] for key in known if key.startswith(prefix)}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name not in level:
            yield unknown_key(key, level)
        elif key not in known and isinstance(value, dict):
            yield from _unknown(value, known, f"{key}.")


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _missing(value, f"{prefix}[{number}]")
    elif node == MISSING:
        yield f"{prefix}: required, and not set. Set it with {prefix}=..."


def _components(config: dict[str, Any]) -> Iterator[str]:
    allow = [str(prefix) for prefix in config.get("allow_targets") or []]
    if _waits_for_path(config):
        yield "data.path: required, and not set. It names the file or folder to train on: data.path=pairs.jsonl"
    for key, runtime in COMPONENTS.items():
        try:
            node = get(config, key)
        except (KeyError, TypeError):
            continue  # said by _frame
        yield from _component(node, key, allow, runtime, required=_is_required(key, config))
    for key, runtime in COLLECTIONS.items():
        try:
            named = get(config, key)
        except (KeyError, TypeError):
            continue
        for name, node in (named or {}).items():
            yield from _component(node, f"{key}.{name}", allow, runtime)
    yield from _auxiliary(config, allow)
    # `_target_` works wherever it stands, so it is refused where no component belongs.
    for key in ("encoder", "prompts", "optim", "run", "export"):
        for place, node in _nested(config.get(key), key):
            if place.rpartition(".")[0] in COLLECTIONS:
                continue
            yield f"{place}._target_: no component belongs here, got {node['_target_']!r}."


def _auxiliary(config: dict[str, Any], allow: list[str]) -> Iterator[str]:
    """A component and its weight, under each name."""
    for name, node in config["auxiliary"].items():
        if node is None:
            continue
        if not isinstance(node, dict) or set(node) != {"weight", "objective"}:
            yield f"auxiliary.{name}: expected {{weight: <number>, objective: <component>}}, got {node!r}."
        else:
            yield from _component(
                node["objective"], f"auxiliary.{name}.objective", allow, COMPONENTS["objective"], required=True
            )


def _is_required(key: str, config: dict[str, Any]) -> bool:
    """A run has a backbone and a pooling, and trains by a loss or by an objective."""
    return key in ("backbone", "pooling") or (key == "loss" and not config.get("objective"))


def _component(
    node: Any, key: str, allow: list[str], runtime: frozenset[str], *, required: bool = False
) -> Iterator[str]:
    if not node and not required:
        return  # a source that a recipe drops, a group of which no option was chosen
    if not isinstance(node, dict) or "_target_" not in node:
        if not node and required:
            yield f"{key}: required, and not set. Choose an option with {key}=<name> (see configs/{key}/)."
        elif isinstance(node, dict):
            yield (
                f"{key}: has settings ({', '.join(node)}) and no _target_ that would say of what. Was the option that "
                "defines it swapped for another one? Two options of a group: evaluation=[held_out,beir]."
            )
        else:
            yield f"{key}: expected a component, which is a mapping with _target_, got {node!r}."
        return
    if node["_target_"] == MISSING:
        return
    try:
        takes = signature(str(node["_target_"]), allow)
    except TargetError as error:
        yield f"{key}._target_: {error}."
        return
    yield from _arguments(node, key, takes, runtime)
    for name, value in node.items():
        for place, inner in _nested(value, f"{key}.{name}"):
            yield from _component(inner, place, allow, frozenset())


def _arguments(node: dict[str, Any], key: str, takes: Signature, runtime: frozenset[str]) -> Iterator[str]:
    given = {name for name in node if name != "_target_"}
    can_set = [name for name in takes.parameters if name not in runtime]
    for name in sorted(given):
        if name in takes.parameters and name in runtime:
            yield f"{key}.{name}: the program sets this itself; leave it out."
        elif name.startswith("_"):
            yield f"{key}.{name}: of Hydra's own keys only _target_ is read."
        elif name not in takes.parameters and not takes.open:
            yield unknown_key(f"{key}.{name}", can_set, owner=takes.name)
        elif name == "path" and node[name] is None:
            continue  # reported once, as data.path
        elif name in takes.parameters and node[name] != MISSING:
            annotation, aliases = takes.parameters[name].annotation, takes.aliases or {}
            if not _is_component(node[name]) and not fits(node[name], annotation, aliases):
                hint = (
                    did_you_mean(node[name], _literals(words(annotation, aliases)))
                    if isinstance(node[name], str)
                    else ""
                )
                yield f"{key}.{name}: expected {words(annotation, aliases)}, got {node[name]!r}.{hint}"
    for name in can_set:
        if takes.parameters[name].required and name not in given:
            yield f"{key}.{name}: required by {takes.name}, and not set. Set it with {key}.{name}=..."


def _waits_for_path(config: dict[str, Any]) -> bool:
    """Whether a component reads data.path, which is not set: its own path has become null."""

    def is_open(node: Any) -> bool:
        return isinstance(node, dict) and (
            ("_target_" in node and node.get("path", "") is None) or any(is_open(inner) for inner in node.values())
        )

    return is_open(config.get("data")) or is_open(config.get("evaluation"))


def _literals(described: str) -> list[str]:
    return described.split("'")[1::2]


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _nested(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The components nearest below `value`, itself included."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        else:
            for name, inner in value.items():
                yield from _nested(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _nested(inner, f"{key}[{number}]")
