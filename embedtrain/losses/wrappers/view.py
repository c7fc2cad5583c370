"""A loss of another view of the embeddings."""

from __future__ import annotations

from torch import nn

from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class View(nn.Module):
    """Any loss on another view of the encoder: the sparse head, a hidden layer.

        inner(batch as embedded in the way called `view`)

    InfoNCE and the losses of distillation read views by themselves; this is for those that do not, and for hidden layers.
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
