"""Methods that read more than weights, made into functions of a tensor.

Models are loaded one after the other; Self Positioning alone has all of them in memory at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from embedtrain.config.compose import load_saved
from embedtrain.config.stages import stage_configs
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export.load import load_encoder
from embedtrain.merging.inputs import Model
from embedtrain.merging.methods.fisher import Fisher, FisherMean
from embedtrain.merging.methods.regmean import RegMean, RegMeanSolution
from embedtrain.merging.methods.self_positioning import Position, SelfPositioning, search
from embedtrain.merging.methods.task_arithmetic import TaskArithmetic
from embedtrain.merging.probe import all_tokens, contrast, probe_batches, probe_loss
from embedtrain.merging.statistics import fisher, gram_matrices, write_fisher, write_grams
from embedtrain.merging.weights import write_folder
from embedtrain.types import TokenBatch

log = logging.getLogger("embedtrain")


@dataclass(frozen=True)
class Setting:
    """What there is to fit to."""

    models: Sequence[Model]
    base: Model | None
    config: Mapping[str, Any]  # of the command
    scratch: Path
    device: Any


def fit_fisher(method: Fisher, setting: Setting) -> FisherMean:
    found = []
    for number, (model, config, encoder) in enumerate(_loaded(setting)):
        batches = _batches(method, config, encoder)
        measured = fisher(encoder, probe_loss(config, encoder, owner=model.name).to(setting.device), batches)
        log.info("%s: Fisher information from %d batches", model.name, len(batches))
        found.append(write_fisher(encoder, measured, setting.scratch / f"fisher_{number}"))
    return method.of(found)


def fit_regmean(method: RegMean, setting: Setting) -> RegMeanSolution:
    found = []
    for number, (model, config, encoder) in enumerate(_loaded(setting)):
        grams = gram_matrices(encoder, _batches(method, config, encoder))
        log.info("%s: inputs of %d linear layers", model.name, len(grams))
        found.append(write_grams(grams, setting.scratch / f"inputs_{number}" / "model.safetensors"))
    return method.of(found)


def fit_position(method: SelfPositioning, setting: Setting) -> tuple[TaskArithmetic, list[Position]]:
    """Raises ConfigError where no data is given: the probe set is one for all models."""
    if not _has_sources(setting.config):
        raise ConfigError(
            "data.sources: empty. self_positioning searches by the loss on rows of its own: data=pairs data.path=<file>"
        )
    assert setting.base is not None
    first = setting.models[0].weights
    # The base in the shape of the models: with their pooling, and without what they do not have.
    folder = write_folder(setting.scratch / "base", first, ((n, _real(setting.base.weights[n])) for n in first))
    encoder = load_encoder(folder).to(setting.device)
    start = {name: parameter.detach() for name, parameter in encoder.named_parameters()}
    vectors = []
    for model in setting.models:
        learned = load_encoder(model.folder).to(setting.device)
        vectors.append({name: p.detach() - start[name] for name, p in learned.named_parameters()})
    loss = probe_loss(setting.config, encoder, owner="the config").to(setting.device)
    encoder.eval().requires_grad_(False)
    losses = [_loss_of(encoder, loss, batch) for batch in _batches(method, setting.config, encoder)]
    log.info("searching on %d batches, %d steps", len(losses), method.steps)
    return search(method, start, vectors, losses)


def _loss_of(encoder: Encoder, loss: nn.Module, batch: TokenBatch) -> Callable[[Mapping[str, Tensor]], Tensor]:
    tokens = all_tokens(batch).to(encoder.device)
    return lambda parameters: contrast(loss, functional_call(encoder, dict(parameters), (tokens,)), batch)


def _real(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _loaded(setting: Setting) -> Iterator[tuple[Model, Mapping[str, Any], Encoder]]:
    """Each model with the config whose data and loss it is measured by: those given, or those of its own run."""
    configs = [_config_of(model, setting.config) for model in setting.models]
    for model, config in zip(setting.models, configs, strict=True):
        yield model, config, load_encoder(model.folder).to(setting.device)


def _config_of(model: Model, config: Mapping[str, Any]) -> Mapping[str, Any]:
    if _has_sources(config):
        return config
    if model.run is None:
        raise ConfigError(
            f"data.sources: empty, and {model.name} is no run whose data could be read. Name rows of the kind that the models "
            "are for: data=pairs data.path=<file>"
        )
    stages = stage_configs(load_saved(model.run / "config.yaml"))
    last = list(stages.values())[-1]
    return stages.get(Path(model.name).resolve().parent.parent.name, last)  # of a checkpoint in the folder of its stage


def _has_sources(config: Mapping[str, Any]) -> bool:
    return any(node is not None for node in config["data"]["sources"].values())


def _batches(
    method: Fisher | RegMean | SelfPositioning, config: Mapping[str, Any], encoder: Encoder
) -> list[TokenBatch]:
    return probe_batches(config, encoder, samples=method.samples, batch_size=method.batch_size, seed=method.seed)
