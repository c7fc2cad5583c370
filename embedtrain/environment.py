"""Where and with what a run ran: enough to explain a difference later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from embedtrain.config.rules import world_size

PACKAGES = (
    "embedtrain",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "datasets",
    "sentence-transformers",
    "hydra-core",
    "numpy",
)


def describe() -> dict[str, Any]:
    """The machine, the versions and the launch."""
    return {
        "command": command_line(),
        "directory": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "host": platform.node(),
        "hardware": _hardware(),
        "world_size": world_size(),
    }


def command_line() -> str:
    """What was typed, as far as this process can know: of the launcher's own settings only `world_size` is kept."""
    program = Path(sys.argv[0]).name
    start = ["accelerate", "launch", program] if program.endswith(".py") else [program]
    return shlex.join([*start, *sys.argv[1:]])


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the command was started in, and whether it has uncommitted changes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {"cpu_cores": os.cpu_count(), "memory_gb": _memory_gb(), "machine": platform.machine()}
    torch = sys.modules.get("torch")  # a run has it loaded; describing the machine is no reason to load it
    if torch is not None and torch.cuda.is_available():
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return None
