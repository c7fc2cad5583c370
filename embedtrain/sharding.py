"""Weights, gradients and AdamW's moments shared out among the ranks, for models that no device holds with all of these.

This is torch's FSDP2 (`fully_shard`; Zhao et al. 2023, arXiv:2304.11277; stage 3 of ZeRO, Rajbhandari et al. 2020,
arXiv:1910.02054). Each rank keeps its part of the rows of every parameter. A layer of the backbone is gathered right before it
runs, forward and once more backward, and let go after it; what is outside of the layers (embeddings, heads) is one more group.
Gradients are summed over the ranks and each keeps its part, so the one sentence of `distributed.py` holds here too: everything is
a share, and shares are summed. What it asks of a step is that all ranks make the same passes: see `passes`.

The launcher says whether: `distributed_type: FSDP` in an accelerate file, as in launch/fsdp_8gpu.yaml. A run gives the same
result either way, up to rounding, and its checkpoints are the same files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from embedtrain import distributed
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.tensor_file import write_tensors

# What an accelerate file may say of FSDP beside its defaults, and what stands in its place here.
_OTHERS = {
    "FSDP_OFFLOAD_PARAMS": "weights stay on the devices; remove fsdp_offload_params",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "every rank reads the weights; set fsdp_cpu_ram_efficient_loading: false",
    "FSDP_ACTIVATION_CHECKPOINTING": "set backbone.gradient_checkpointing=true in place of fsdp_activation_checkpointing",
}


def is_wanted() -> bool:
    """Whether the launcher asks for it. Raises ConfigError for a way of sharding that is not here."""
    if _says("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "launch: distributed_type DEEPSPEED was asked for. Weights are sharded by FSDP2 here, which is ZeRO's stage 3: use "
            "distributed_type FSDP, as in launch/fsdp_8gpu.yaml."
        )
    if not _says("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ConfigError("launch: fsdp_version 1 was asked for. Set fsdp_version: 2, as in launch/fsdp_8gpu.yaml.")
    for variable, remedy in _OTHERS.items():
        if _says(variable):
            raise ConfigError(f"launch: {variable.lower()} was asked for: {remedy}.")
    return distributed.world_size() > 1


def _says(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def shard(encoder: nn.Module, half: torch.dtype | None) -> None:
    """Share out the weights of `encoder`, which are the same on every rank, in place. Every rank calls it.

    half: the type of autocast, or None. Weights travel in their own type all the same, fp32 where they train, and autocast rounds
        them where it would: gathered in bf16 they would be half the bytes, and norms and biases would be rounded with them.

    Raises ConfigError for fp16, whose loss scale would have to be one over all shards.
    """
    if half is torch.float16:
        raise ConfigError("training.mixed_precision: fp16 does not go with sharded weights. Use bf16.")
    mesh = init_device_mesh(distributed.device().type, (distributed.world_size(),))
    for layer in layers_of(encoder):
        fully_shard(layer, mesh=mesh, reshard_after_forward=_lets_go())
    fully_shard(encoder, mesh=mesh)
    register_fsdp_forward_method(encoder, "encode_context")
    for group in _groups(encoder):
        group.set_gradient_divide_factor(1.0)
        group.set_force_sum_reduction_for_comms(True)  # of which every backend is capable
    # The first forward pass settles which group is the outermost, so it must be one of the whole encoder.
    tokens, _ = cast(Any, encoder).tokenizer.encode(["."], role="query")
    with torch.no_grad(), torch.autocast(distributed.device().type, half, enabled=half is not None):
        encoder(tokens)
    cast(FSDPModule, encoder).reshard()


def _lets_go() -> bool:
    """Whether a layer is let go after its forward pass, as the launcher says; else it stays until its backward."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"


def gather_outer(encoder: nn.Module) -> None:
    """Before a forward pass that enters a sharded encoder elsewhere than by `forward`: all weights outside of its layers."""
    if isinstance(encoder, FSDPModule):
        encoder.unshard()


def layers_of(encoder: nn.Module) -> list[nn.Module]:
    """The layers of all transformers in it: members of module lists, the outermost of each."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.ModuleList) and any(True for _ in child.parameters()):
                found.append(child)
            else:
                look(child)

    look(cast(nn.Module, encoder.backbone))
    return found


def describe(encoder: nn.Module) -> str:
    """For the log: what each rank holds of a sharded encoder."""
    parameters = list(encoder.parameters())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return (
        f"sharded: {distributed.world_size()} ranks hold {held:,} of {sum(p.numel() for p in parameters):,} parameters each "
        f"(rank 0), and gather one of {len(_groups(encoder)) - 1} layers at a time"
    )


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def _groups(encoder: nn.Module) -> list[FSDPModule]:
    return [module for module in encoder.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole(encoder: nn.Module) -> Iterator[None]:
    """All weights on every rank inside: ranks then make as many passes as each likes.

    For evaluation and mining; nothing may train. Every rank enters. Of weights that are not sharded nothing changes.
    """
    groups = _groups(encoder)
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()
            group.set_reshard_after_forward(group is not encoder and _lets_go(), recurse=False)


def passes(own: int, encoder: nn.Module) -> int:
    """How many passes this rank must make where `own` would do: as many as any rank, since a layer is gathered by all."""
    return distributed.largest(own) if is_sharded(encoder) else own


# ------------------------------------------------------------------------------------------- parts, and what they are parts of


def full(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a part. Every rank calls it; a tensor that is whole is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """Of `value`, which is whole, what this rank holds of `tensor`, on its device."""
    value = value.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def put(parameter: Tensor, value: Tensor) -> None:
    """A whole `value` into a live parameter, of which this rank may hold a part."""
    with torch.no_grad():
        parameter.copy_(like(parameter, value))


@contextmanager
def gathered(tensors: Iterable[Tensor]) -> Iterator[Iterator[Tensor]]:
    """Each tensor in turn, whole, on the CPU of rank 0. Every rank enters.

    What rank 0 leaves, because it failed, is gathered all the same: the others wait for it there.
    """
    parts = (_on_main(tensor.detach()) for tensor in tensors)
    try:
        yield parts
    finally:
        deque(parts, maxlen=0)


def _on_main(tensor: Tensor) -> Tensor:
    found = full(tensor)
    return found.cpu() if distributed.is_main() else found


def save_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file, whole or not at all: rank 0 writes it, every rank calls. Raises TrainingError on all of them."""
    failure: str | None = None
    with gathered(tensors.values()) as parts:
        if distributed.is_main():
            partial = path.with_suffix(".partial")
            try:
                partial.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    write_tensors(file, {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}, parts)
                partial.replace(path)
            except OSError as error:
                partial.unlink(missing_ok=True)
                failure = f"{path} could not be written: {error}"
    failure = distributed.broadcast_object(failure)
    if failure is not None:
        raise TrainingError(f"{failure}. Free some space and start the same command again; it resumes.")


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their norm is at most `limit`. Returns the norm before. As torch's `clip_grad_norm_`."""
    parameters = list(parameters)
    shared = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    if not shared:
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    rest = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    norm = torch.sqrt(distributed.sum_over_ranks(_square(shared)) + _square(rest).to(shared[0].device))
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(shared + rest, scale)
    return float(norm)


def _square(gradients: list[Any]) -> Tensor:
    if not gradients:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def fill(plain: nn.Module, sharded: nn.Module) -> None:
    """All weights and buffers of a sharded encoder into a plain one of the same settings. Every rank calls it."""
    mine = plain.state_dict(keep_vars=True)
    for name, tensor in sharded.state_dict(keep_vars=True).items():
        put(mine[name], full(tensor.detach()))
