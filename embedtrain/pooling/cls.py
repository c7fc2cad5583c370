"""CLS pooling: the state of a text's first token, for encoders that were trained to summarise there."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.types import RaggedTokens


class ClsPooling(nn.Module):
    """The first token's state, also where an instruction is left out of the span: [CLS] comes before it."""

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        return hidden[tokens.offsets[:-1].to(hidden.device, non_blocking=True)].float()
