"""What a planned run costs on given machines: memory, operations, hours, money, and the smallest device that it fits.

Memory per device is an estimate, in bytes:

    weights        what the backbone, the heads and the loss hold
    gradients      4 per trainable parameter (they are fp32)
    optimizer      8 per trainable parameter (AdamW's two fp32 moments)
    activations    tokens kept at a time * layers * (18 H + 4 I) * b/2
                   H hidden size, I inner size of the feed-forward block, b bytes of a number in the forward pass: Korthikanti
                   et al. 2022 (arXiv:2205.05198, eq. 1) without the quadratic part, since attention is computed in tiles.
                   With gradient checkpointing: tokens * (layers * H * b + one layer in full).

Where the devices share out the weights (sharding.py), each has its part of the first three, and beside them

    gathered       two layers and all that is outside of layers in a step; in an evaluation, where there are no activations and no
                   gradients, the whole model. What is more, counted above what those two leave free

"Tokens kept" is one chunk, or one text that is longer, plus the uncached share of a micro-batch on one rank, every text at its
maximum length: real texts are shorter, so this is an upper bound. An objective keeps no chunk beyond its own pass.

Operations of a step, where N are the weights that a token is multiplied with (all but the rows of embedding tables), N' those
of them that train, L layers of width H, T the longest text and S the tokens of the step:

    forward     2 N S + 4 L H T S        the second part is attention, an upper bound as T is
    backward    the forward once more for the gradients of activations, and 2 N' S for those of weights
    again       the forward once more for the share of chunks that is recomputed

(Kaplan et al. 2020, arXiv:2001.08361, section 2.1; with frozen weights as in Ziarko et al. 2024, arXiv:2406.04165.) Below layers
that train nothing no gradient is needed, so a run that trains heads alone takes less. Teachers beside the student are not
counted. Hours assume that 40 % of a device's stated arithmetic is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from embedtrain.config.compose import ROOT
from embedtrain.config.models import models_of
from embedtrain.config.rules import auxiliary_of
from embedtrain.errors import ConfigError

LAUNCH = ROOT / "launch"
UTILISATION = 0.4  # assumed; well-run training of large matrices reaches 0.3 to 0.5
HEADROOM = 0.9  # of a device's memory: the rest is the allocator's, the driver's and the kernels'


@dataclass(frozen=True)
class Launch:
    """What an accelerate file says that a plan depends on."""

    name: str
    world: int
    mixed_precision: str
    sharded: bool = False


@dataclass(frozen=True)
class Hardware:
    """A row of launch/hardware.yaml."""

    name: str
    memory: float  # GB
    bf16: float  # TFLOP/s
    fp32: float
    dollars: float  # per device and hour

    def fits(self, size: float) -> bool:
        """Whether `size` bytes per device leave room enough."""
        return size <= HEADROOM * self.memory * 1e9


@dataclass(frozen=True)
class Outlay:
    """Of one stage."""

    flops_per_step: float  # all devices together
    hardware: Hardware | None
    hours: float | None
    dollars: float | None

    def lines(self, world: int) -> list[str]:
        text = [f"operations         {self.flops_per_step:.3g} per step, {self.flops_per_step / world:.3g} per device"]
        if self.hours is not None and self.hardware is not None:
            text.append(
                f"time               about {self.hours:,.3g} hours on {world} x {self.hardware.name} at {UTILISATION:.0%} of "
                f"their arithmetic, about {self.dollars:,.0f} dollars"
            )
        return text


def read_launch(name: str) -> Launch:
    """An accelerate file by path, or by its name in launch/. Raises ConfigError where there is none."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else LAUNCH / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in LAUNCH.glob("*.yaml") if "num_processes" in p.read_text(encoding="utf-8"))
        raise ConfigError(f"launch={name}: there is no file {path}. Expected a path or one of {', '.join(known)}.")
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(node, dict) or not isinstance(node.get("num_processes"), int):
        raise ConfigError(f"launch={name}: {path} is no accelerate config: it says no num_processes.")
    sharded = node.get("distributed_type") == "FSDP" and node["num_processes"] > 1
    return Launch(path.stem, node["num_processes"], str(node.get("mixed_precision", "no")), sharded)


def hardware_rows(path: Path = LAUNCH / "hardware.yaml") -> dict[str, Hardware]:
    """Raises ConfigError for a row that is not as in launch/hardware.yaml."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: Hardware(name, **row) for name, row in rows.items()}
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: expected rows of {{memory, bf16, fp32, dollars}}: {error}") from error


def read_hardware(name: str) -> Hardware:
    """A row by name, or `file.yaml:row`. Raises ConfigError where there is none."""
    file, _, row = name.rpartition(":")
    rows = hardware_rows(Path(file)) if file else hardware_rows()
    if row not in rows:
        raise ConfigError(f"hardware={name}: expected one of {', '.join(rows)}, or <file>.yaml:<row>.")
    return rows[row]


def estimate_memory(config: Mapping[str, Any], parameters: Any, tokens: float, sharded_over: int = 1) -> dict[str, int]:
    """Bytes per device by part; `parameters` a `planning.Parameters`, `tokens` of one micro-batch on one rank.

    sharded_over: devices that share out the weights.
    """
    training, p = config["training"], parameters
    longest = max(config["encoder"]["max_query_length"], config["encoder"]["max_document_length"])
    share = 1.0 if config["objective"] else training["cached_share"]
    kept = min(tokens, max(longest, training["chunk_tokens"]) + (1 - share) * tokens)
    width = 2 if training["mixed_precision"] in ("bf16", "fp16") else 4
    layer = (18 * p.hidden_size + 4 * p.inner_size) * width / 2
    per_token = p.layers * layer
    trained = 0 if training["max_steps"] == 0 else p.trainable
    if _checkpoints(config):
        per_token = p.layers * p.hidden_size * width + layer
    memory = {
        "weights": p.bytes // sharded_over,
        "gradients": 4 * trained // sharded_over,
        "optimizer": 8 * trained // sharded_over,
        "activations": round(kept * per_token),
    }
    if sharded_over > 1:
        in_a_step = p.bytes_outside + 2 * (p.bytes - p.bytes_outside) // p.layers
        memory["gathered"] = max(in_a_step, p.bytes - memory["activations"] - memory["gradients"])
    return memory


def flops_per_step(config: Mapping[str, Any], parameters: Any, tokens: float) -> float:
    """Of all devices together; `parameters` a `planning.Parameters`, `tokens` of the step at most. See the formula on top."""
    training = config["training"]
    longest = max(config["encoder"]["max_query_length"], config["encoder"]["max_document_length"])
    longest += tokens_in_front(config["backbone"])
    forward = 2 * parameters.multiplied + 4 * parameters.layers * parameters.hidden_size * longest
    recomputed = 1.0 if _checkpoints(config) else 0.0 if config["objective"] else training["cached_share"]
    passes = 1 + len(auxiliary_of(config))  # each objective beside a loss reads the texts once more
    return passes * tokens * (forward * (2 + recomputed) + 2 * parameters.multiplied_trainable)


def tokens_in_front(backbone: Mapping[str, Any]) -> int:
    """What a contextual backbone reads in front of the tokens of each text; others read nothing there."""
    return int(backbone.get("num_context", 0)) + int(backbone.get("num_prompts", 0))


def _checkpoints(config: Mapping[str, Any]) -> bool:
    """Whether layers are computed again in the backward; of a bridge those of its larger model, which is the last."""
    return bool([*models_of(config["backbone"]).values()][-1].get("gradient_checkpointing"))


def outlay(flops: float, steps: int | None, world: int, precision: str | None, hardware: Hardware | None) -> Outlay:
    if steps is None or hardware is None:
        return Outlay(flops, hardware, None, None)
    speed = hardware.bf16 if precision in ("bf16", "fp16") else hardware.fp32
    hours = steps * flops / (world * speed * 1e12 * UTILISATION) / 3600
    return Outlay(flops, hardware, hours, hours * world * hardware.dollars)


def smallest_that_fits(size: float) -> Hardware | None:
    """The row of launch/hardware.yaml with the least memory that `size` bytes per device fit."""
    fitting = [row for row in hardware_rows().values() if row.fits(size)]
    return min(fitting, key=lambda row: (row.memory, row.dollars), default=None)
