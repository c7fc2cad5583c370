"""MoEE (arXiv:2410.10814): the choices of a mixture of experts, beside its hidden states, are an embedding without training."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens


class MoeRouterPooling(nn.Module):
    """h: the last token's state in the last layer. r: its routing weights, softmax over experts, of all layers in a row.

        concat   e = [h, r]                               similarities are led by whichever is longer
        sum      e = [h / |h|, sqrt(alpha) r / |r|]       <e, e'> = cos(h, h') + alpha cos(r, r')

    Texts end in an end-of-text token, unless encoder.append_eos=false. The paper also asks for the meaning in one word
    (PromptEOL), by a prompt around the text: 'This sentence: "{text}" means in one word: "'.

    combine       concat or sum
    alpha         weight of the routing in the sum
    hidden_size, num_routes: of the backbone, experts of all its layers; supplied by the program.
    """

    needs_router = True
    reads_last_token = True

    def __init__(
        self, *, hidden_size: int, num_routes: int, combine: Literal["concat", "sum"] = "sum", alpha: float = 1.0
    ) -> None:
        super().__init__()
        if not num_routes:
            raise ConfigError(
                "pooling: moe_router reads the routers of a mixture of experts, and this backbone has none."
            )
        self.combine = combine
        self.alpha = alpha
        self.output_dim = hidden_size + num_routes

    def forward(self, hidden: tuple[Tensor, Tensor], tokens: RaggedTokens) -> Tensor:
        """`hidden`: states [S, H] of the last layer, and routing weights [S, R]."""
        last = (tokens.offsets[1:] - 1).to(hidden[0].device, non_blocking=True)
        states, routing = (part[last].float() for part in hidden)
        if self.combine == "sum":
            states, routing = F.normalize(states, dim=1), self.alpha**0.5 * F.normalize(routing, dim=1)
        return torch.cat([states, routing], dim=1)
