"""EOS pooling: the state of a text's last token, the only one of a causal decoder that has seen the whole text."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.types import RaggedTokens


class EosPooling(nn.Module):
    """The last token's state. That this token is EOS, also after truncation, is the tokenizer's promise (`append_eos`)."""

    reads_last_token = True  # so that texts end in EOS unless the configuration says otherwise

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        return hidden[(tokens.offsets[1:] - 1).to(hidden.device, non_blocking=True)].float()
