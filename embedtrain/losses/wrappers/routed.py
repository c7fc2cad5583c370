"""A loss of its own for each source of a mixture."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.temperature import Temperature
from embedtrain.types import EmbeddingBatch, LossOutput, text_id


class Routed(nn.Module):
    """A loss of its own for each source of a mixture.

        sum over sources of  (queries of the source / all queries) * loss of the source(its part of the batch)

    BGE-M3 (arXiv:2402.03216), QZhou (arXiv:2508.21632), CoDiEmb (arXiv:2508.11442), F2LLM (arXiv:2510.02294): retrieval,
    STS and classification data have losses, and rules about negatives, of their own. With data.batching=one_source a batch is
    all of one source. In a blended batch each source is contrasted with its own documents alone. Metrics: those of each
    source present, as <source>/<metric>, means over its queries.
    Cost: that of the losses.

    losses               by name of the source under data.sources
    default              for sources without one; null: such a source is refused
    shared_temperature   learned temperatures are one parameter, that of the first loss that has one
    """

    def __init__(
        self,
        *,
        losses: Mapping[str, nn.Module | None],
        default: nn.Module | None = None,
        shared_temperature: bool = False,
    ):
        super().__init__()
        self.losses = nn.ModuleDict({name: loss for name, loss in losses.items() if loss is not None})
        self.default = default
        self._names = {text_id(name): name for name in self.losses}
        if shared_temperature:
            _share_temperature(self)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        sources = batch.relation.sources
        if sources is None:
            raise ConfigError("a routed loss must know the source of each query, and this batch does not say it.")
        present = torch.unique(sources).tolist()
        parts: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for number in present:
            part = batch if len(present) == 1 else batch.select(torch.nonzero(sources == number).flatten())
            name = self._names.get(number, "default")
            output = self._loss(name)(part)
            parts.append(output.loss * (part.relation.num_queries / batch.relation.num_queries))
            metrics |= {f"loss_{name}": output.loss.detach()}
            metrics |= {f"{name}/{key}": value for key, value in output.metrics.items()}
        return LossOutput(torch.stack(parts).sum(), metrics)

    def refuse_unrouted(self, sources: Collection[str]) -> None:
        """Raises ConfigError for sources of the run that no loss is for, and for losses of sources that there are not."""
        unrouted = [name for name in sources if name not in self.losses]
        if unrouted and self.default is None:
            raise ConfigError(
                f"loss.losses: no loss for source {', '.join(unrouted)}. Add one under that name, or set loss.default."
            )
        unknown = [name for name in self.losses if name not in sources]
        if unknown:
            raise ConfigError(
                f"loss.losses: {', '.join(unknown)} is no source of data.sources. There are: {', '.join(sources)}."
            )

    def routes(self, sources: Collection[int]) -> list[nn.Module]:
        """The losses that queries of these sources go to. `sources`: `text_id` of each."""
        names = dict.fromkeys(self._names.get(number, "default") for number in sorted(sources))
        return [self._loss(name) for name in names]

    def _loss(self, name: str) -> nn.Module:
        if name in self.losses:
            return self.losses[name]
        if self.default is None:
            raise ConfigError("loss.losses: a batch holds a source that no loss is for. Set loss.default.")
        return self.default


def _share_temperature(loss: nn.Module) -> None:
    learned = [
        (module, name)
        for module in list(loss.modules())
        for name, child in module.named_children()
        if isinstance(child, Temperature) and child.learned
    ]
    if not learned:
        raise ConfigError(
            "loss.shared_temperature: no loss here learns its temperature. Set learn_temperature: true in them."
        )
    first = getattr(*learned[0])
    for module, name in learned[1:]:
        setattr(module, name, first)
