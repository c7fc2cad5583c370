"""What changed between the config of a run and the one that wants to resume it, and whether it may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedtrain.config.origins import leaves

# Settings that change what is said, kept or measured, or how fast it goes: never the weights (chunk_tokens regroups texts, so
# with dropout it draws other masks: the same expectation, not the same numbers).
FREE = (
    "card",
    "run.name",
    "run.dir",
    "run.resume",
    "backbone.kernel",
    "backbone.gradient_checkpointing",
    "data.num_workers",
    "miner.store",
    "miner.max_memory_gb",
    "training.chunk_tokens",
    "training.cached_share",
    "training.log_every",
    "training.save_every",
    "training.keep_checkpoints",
    "training.strict",
    "training.refresh.device",
    "training.refresh.threads",
    "evaluation",
    "trackers",
    "export",
    "allow_targets",
)
_ABSENT = "(not there)"


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(changes that make another result, changes that do not), each as "key: old then, new now"."""
    # A mapping without entries is no setting: an entry that is added to it is the difference.
    old, new = ({key: value for key, value in leaves(config).items() if value != {}} for config in (saved, current))
    result: list[str] = []
    free: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if before != now:
            line = f"{key}: {_shown(before)} then, {_shown(now)} now"
            (free if _is_free(key) else result).append(line)
    return result, free


def _is_free(key: str) -> bool:
    """Whether a setting, of the run or of one of its stages, changes nothing that is learned."""
    if key.startswith("stages."):
        key = key.split(".", 2)[-1]
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
