"""Does an exported folder give the embeddings of the encoder it came from? Asked of a fresh process, not of this one.

1. The encoder embeds the probes, as queries and as documents.
2. A new process, with plain sentence-transformers and no embedtrain, loads the folder and embeds the same probes.
3. Every pair of vectors must agree: cosine above 0.9999 and the same length to 0.1 %.

Where sentence-transformers is not installed, or cannot load such a folder, the new process uses embedtrain's own
reader, and the report says so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedtrain.errors import CheckpointError
from embedtrain.types import Embeddings, Role

MIN_COSINE = 0.9999
MAX_LENGTH_ERROR = 1e-3  # relative; only an encoder that does not normalise can differ here
_RELOAD = Path(__file__).parent / "modules" / "reload.py"
# The new process is one process: what the launcher told this one must not reach it.
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PARALLELISM_CONFIG_")


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the reloaded folder is from the encoder, at its worst."""

    worst_cosine: float
    worst_text: str
    worst_role: Role
    length_error: float  # largest relative difference of vector lengths
    verified_with: str  # what loaded the folder, with its version

    @property
    def passed(self) -> bool:
        # Written so that a NaN fails.
        return self.worst_cosine > MIN_COSINE and self.length_error < MAX_LENGTH_ERROR


def verify(
    folder: Path,
    texts: Sequence[str],
    expected: Mapping[Role, Embeddings],
    *,
    prompts: Mapping[Role, str | None],
    ours_alone: bool = False,
) -> Verification:
    """Reload `folder` in a fresh process and compare with `expected[role]`, N texts in each role.

    prompts: of each role, to be passed by hand; None takes the folder's own.
    ours_alone: sentence-transformers cannot load the folder, so embedtrain's own reader does.

    Raises CheckpointError when the folder cannot be loaded there at all.
    """
    installed = importlib.util.find_spec("sentence_transformers") is not None
    library = "sentence-transformers" if installed and not ours_alone else "embedtrain"
    found = _embed_in_fresh_process(folder, {"texts": list(texts), "prompts": dict(prompts)}, library)
    worst = (float("inf"), "", "query")
    length_error = 0.0
    for role, reference in expected.items():
        owners = _owners(reference, found, role, texts)
        cosines, lengths = compare(reference.values, torch.from_numpy(found[role]))
        index = int(cosines.nan_to_num(nan=-2.0).argmin())
        worst = min(worst, (float(cosines[index].nan_to_num(nan=-2.0)), texts[owners[index]], role))
        length_error = max(length_error, float(lengths.nan_to_num(nan=float("inf")).max()))
    return Verification(
        worst_cosine=worst[0],
        worst_text=worst[1],
        worst_role="query" if worst[2] == "query" else "document",
        length_error=length_error,
        verified_with=_versioned(library, installed),
    )


def compare(expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and relative difference of length, row by row: two times [N, E] -> [N], [N]. Two zero vectors agree."""
    if expected.shape != found.shape:
        raise CheckpointError(
            f"export refused: the reloaded folder gives embeddings of shape {tuple(found.shape)}, the encoder "
            f"{tuple(expected.shape)}."
        )
    expected, found = expected.double(), found.double()
    nothing = (expected == 0).all(dim=-1) & (found == 0).all(dim=-1)
    cosines = torch.nn.functional.cosine_similarity(expected, found, dim=-1)
    lengths = expected.norm(dim=-1)
    differences = (found.norm(dim=-1) - lengths).abs() / lengths
    return cosines.masked_fill(nothing, 1.0), differences.masked_fill(nothing, 0.0)


def _owners(expected: Embeddings, found: Mapping[str, np.ndarray], role: str, texts: Sequence[str]) -> list[int]:
    """The text of each vector. Raises CheckpointError where the folder gives a text more vectors or fewer."""
    if expected.offsets is None:
        return list(range(len(expected)))
    counts, theirs = expected.offsets.diff(), torch.from_numpy(found[f"{role}_counts"])
    differing = torch.nonzero(counts != theirs).flatten().tolist()
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"export refused: the reloaded folder gives the {role} {texts[first][:80]!r} {int(theirs[first])} vectors, the "
            f"encoder {int(counts[first])}."
        )
    return torch.repeat_interleave(torch.arange(len(counts)), counts).tolist()


def _embed_in_fresh_process(folder: Path, task: dict[str, Any], library: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="embedtrain-verify-") as scratch:
        task_path, out_path = Path(scratch, "task.json"), Path(scratch, "embeddings.npz")
        task_path.write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable, "-P", str(_RELOAD), str(folder), str(task_path), str(out_path), library]
        done = subprocess.run(command, env=_environment(scratch), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise CheckpointError(f"export refused: {library} cannot load the folder in a fresh process:\n{tail}")
        with np.load(out_path) as arrays:
            return dict(arrays)


def _environment(scratch: str) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in _LAUNCHER and not key.startswith(_LAUNCHER_PREFIXES)
    }
    # Offline: a folder that needs the hub is not complete. No GPU: this process still holds its memory.
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": scratch,
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _versioned(library: str, installed: bool) -> str:
    if library == "embedtrain":
        why = "cannot load this folder" if installed else "is not installed"
        return f"embedtrain's own reader (sentence-transformers {why})"
    return f"{library} {importlib.metadata.version(library)}"
