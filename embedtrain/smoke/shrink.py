"""A recipe's config, small: the same components in the same stages, on small models, real small texts and a CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedtrain.config.models import with_models
from embedtrain.config.signatures import signature
from embedtrain.errors import ConfigError
from embedtrain.smoke.models import HEADS, LAYERS, WIDTH, small_model
from embedtrain.smoke.rows import ROWS, texts, write_source

STEPS, BATCH, LENGTH, NEGATIVES = 2, 8, 64, 2
_HELD_OUT = {
    "_target_": "embedtrain.evaluation.retrieval.PairsEvaluator",
    "pairs": {"_target_": "embedtrain.data.stdlib.StandardLibraryPairs", "split": "test", "limit": ROWS},
    "instruction": "Find the function that does this.",
}

# Numbers of components that stand for sizes, by the name of the parameter, wherever it is.
_SIZES = {
    "num_latents": 8,
    "num_heads": HEADS,
    "head_dim": 16,
    "expansion": 2,
    "num_query_tokens": 2,
    "num_document_tokens": 4,
    "depth": 8,
    "first": 2,
    "size": 16,
}


def shrink(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a small run in `folder`. `config`: resolved; what it leaves to its user may be missing.

    Raises ConfigError for a key of `card.smoke` that the config does not have.
    """
    small = copy.deepcopy(dict(config))
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    small["run"] |= {"dir": str(folder / "run"), "resume": "never"}
    small["trackers"] = {}
    small["evaluation"] |= {"evaluators": {"held_out": _HELD_OUT}, "primary": None}
    small["export"] |= {"num_probes": 4, "whiten_to": small["export"]["whiten_to"] and WIDTH // 4}
    changes = _kept(small)
    folders = iter(("model", "second_model"))

    def in_place_of(model: Mapping[str, Any]) -> dict[str, Any]:
        named = model.get("name") or ""
        made = small_model("" if named == "???" else named, texts(), folder / next(folders), **changes)
        plain = {"revision": None, "trust_remote_code": False, "gradient_checkpointing": False}
        return {"name": made, "weights": "pretrained", **plain}

    small["backbone"] = with_models(small["backbone"], in_place_of)
    small["training"]["mixed_precision"] = "no"
    for label, node in (("", small), *_stages(small)):
        _shrink_stage(node, config, folder, label)
    for key, value in small["card"]["smoke"].items():
        _set(small, key, value)
    return small


def _stages(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, node in config["stages"].items():
        if node is not None:
            yield name, node


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `card.smoke` changes in the small model's own configuration: keys under backbone.config."""
    smoke = config["card"]["smoke"]
    prefix = "backbone.config."
    changes = {key.removeprefix(prefix): value for key, value in smoke.items() if key.startswith(prefix)}
    config["card"]["smoke"] = {key: value for key, value in smoke.items() if not key.startswith(prefix)}
    return changes


def _shrink_stage(node: dict[str, Any], whole: Mapping[str, Any], folder: Path, label: str) -> None:
    """The whole config, or the differences of a stage: only what is there is changed."""
    encoder, training, data = (node.get(part) or {} for part in ("encoder", "training", "data"))
    for key in ("max_query_length", "max_document_length"):
        if encoder.get(key) is not None:
            encoder[key] = min(encoder[key], LENGTH)
    if encoder.get("projection_dim") is not None:
        encoder["projection_dim"] = WIDTH
    if "query_augmentation" in encoder and encoder["query_augmentation"] is not None:
        encoder["query_augmentation"] = min(encoder["query_augmentation"], LENGTH // 2)
    for part in ("pooling", "loss", "objective", "auxiliary", "miner"):
        _shrink_component(node.get(part) or {})
    for head in (encoder.get("views") or {}).values():
        _shrink_component(head or {})
    backbone = node.get("backbone") or {}
    for model in [backbone, *(part for part in backbone.values() if isinstance(part, dict))]:
        if model.get("lora"):
            model["lora"] = {**model["lora"], "r": 4}
        if model.get("dtype"):
            model["dtype"] = "float32"
    if backbone.get("num_context"):
        backbone["num_context"] = min(backbone["num_context"], BATCH)
    if backbone.get("soft_mask"):
        backbone["soft_mask"] = {**backbone["soft_mask"], "steps": STEPS}
    if not label or training:
        steps = 0 if training.get("max_steps") == 0 else STEPS
        training |= {"global_batch_size": BATCH, "per_device_batch_size": None, "max_steps": steps, "log_every": 1}
        training |= {"save_every": None, "evaluate_every": None}
        if training.get("accumulation_steps", 1) > 1:
            training["accumulation_steps"] = 2
        if (training.get("refresh") or {}).get("num_negatives"):
            training["refresh"]["num_negatives"] = 1  # of the two that a miner finds
    optim = node.get("optim") or {}
    if "warmup_steps" in optim:
        optim["warmup_steps"] = optim["warmup_steps"] and 1
    if data.get("num_negatives"):
        data["num_negatives"] = min(data["num_negatives"], NEGATIVES)
    if not label:
        data["num_workers"] = 0
    for name, source in (data.get("sources") or {}).items():
        if source:
            wanted = source.get("num_negatives", data.get("num_negatives", whole["data"]["num_negatives"]))
            _shrink_source(source, folder / "rows" / f"{label or 'run'}_{name}.jsonl", wanted)
    if data.get("neighbourhoods"):
        data["neighbourhoods"] |= {"model": None, "rows_per_cluster": None}
    for teacher in (node.get("teachers") or {}).values():
        _shrink_teacher(teacher or {}, folder)


def _shrink_component(node: dict[str, Any]) -> None:
    """Sizes of a component and of those inside it, in place."""
    for key, value in node.items():
        if isinstance(value, dict):
            _shrink_component(value)
        elif key in _SIZES and isinstance(value, int):
            node[key] = min(value, _SIZES[key])
        elif key == "dim" and isinstance(value, int):
            node[key] = min(value, 16)
        elif key == "sizes" and value:
            node[key] = [WIDTH + 32] * (len(value) - 1) + [WIDTH]
        elif key == "dims" and isinstance(value, list):
            node[key] = [WIDTH >> i for i in range(min(len(value), 5))]
        elif key == "layers" and isinstance(value, list):
            node[key] = sorted({min(layer, LAYERS - 1) for layer in value})
        elif key == "pairs" and isinstance(value, list):
            node[key] = [[1, WIDTH // 4], [LAYERS, WIDTH]]
        elif key == "weights" and isinstance(value, list):
            node[key] = value[:5]
    for key, least in (("num_negatives", 2), ("depth", 8)):
        if isinstance(node.get(key), int) and "search" in node:
            node[key] = min(node[key], least)


def _shrink_source(node: dict[str, Any], path: Path, num_negatives: int | None) -> None:
    if isinstance(node.get("rows"), dict):  # made of another source
        _shrink_source(node["rows"], path, num_negatives)
    else:
        negatives = NEGATIVES if num_negatives is None else min(num_negatives, NEGATIVES)
        changes = write_source(node, path, negatives=negatives)
        if "_target_" in changes:
            known = signature(changes["_target_"]).parameters
            for key in [key for key in node if key not in known and key != "_target_"]:
                del node[key]
        node |= changes
    for key, most in (("batch_size", BATCH), ("num_negatives", NEGATIVES), ("max_query_length", LENGTH)):
        if node.get(key):
            node[key] = min(node[key], most)
    if node.get("max_document_length"):
        node["max_document_length"] = min(node["max_document_length"], LENGTH)
    if node.get("texts_per_label"):
        node["texts_per_label"] = 2
    node["limit"] = ROWS if "_target_" in node and node["_target_"].endswith("StandardLibraryPairs") else None
    node["held_out"] = None


def _shrink_teacher(node: dict[str, Any], folder: Path) -> None:
    """Whatever the teacher is, its place is taken by a small model of its family that answers at once."""
    for part in (node.get("parts") or {}).values():
        _shrink_teacher(part or {}, folder)
    model = node.get("model") or (node.get("filled_by") or {}).get("model")
    if model is None:
        return
    name = "".join(c if c.isalnum() else "-" for c in str(model))
    made = small_model(str(model), texts(), folder / "teachers" / name)
    prompts = node.get("prompts") or (node.get("filled_by") or {}).get("prompts")
    node.clear()
    node |= {"_target_": "embedtrain.teachers.online.OnlineTeacher", "model": made, "prompts": prompts}


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """A value by its full key, in place. `validate` refuses a last part that nothing reads."""
    node: Any = config
    *parents, last = key.split(".")
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(f"card.smoke.{key}: this recipe has no {'.'.join(parents)}.")
    node[last] = value
