"""A loss of another view of the embeddings."""

from __future__ import annotations

from torch import nn

from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class View(nn.Module):
    """inner(batch as embedded in the way called `view`): any loss on the sparse head, on a hidden layer.

    Cost: that of `inner`.

    inner   the loss
    view    a name under encoder.views, or layer_<n>
    """

    def __init__(self, *, inner: nn.Module, view: str):
        super().__init__()
        self.inner = inner
        self.view = view

    @property
    def needs(self) -> Needs:
        kind, _, number = self.view.partition("_")
        if kind == "layer" and number.isdigit():
            return Needs(layers=(int(number),))
        return Needs(views=(self.view,))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        return self.inner(batch.view(self.view))
