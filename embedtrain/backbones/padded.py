"""The adapter for models without variable-length attention: pad, run, give ragged states back.

Padding is on the right and the mask comes from the lengths, never from token ids: a pad token that is also the
end-of-text token cannot be mistaken. Callers hand in length-sorted chunks, so little of the work is padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from embedtrain.backbones.ragged import RaggedLayout
from embedtrain.backbones.routing import routing_weights


def padded_states(
    model: PreTrainedModel,
    read: Tensor,
    layout: RaggedLayout,
    options: Mapping[str, Any],
    positions: Tensor | None = None,
) -> list[Tensor]:
    """Hidden states [S, H] of flat ids [S] or input vectors [S, H]; with `output_hidden_states` those of every layer.

    positions: ids of them [S], where the model's own, in order, are not what is wanted.
    With `output_router_logits` the routing weights [S, R] come last.
    """
    device = read.device
    lengths = torch.tensor(layout.lengths, device=device)
    mask = torch.arange(layout.longest, device=device) < lengths[:, None]  # [N, T]
    if read.ndim == 1:
        filler = model.config.pad_token_id or 0
        padded = {
            "input_ids": torch.full(mask.shape, filler, dtype=read.dtype, device=device).masked_scatter(mask, read)
        }
    else:
        padded = {"inputs_embeds": read.new_zeros(*mask.shape, read.shape[1]).index_put((mask,), read)}
    if positions is not None:
        padded["position_ids"] = positions.new_zeros(mask.shape).masked_scatter(mask, positions)
    output = model(**padded, attention_mask=layout.keys(device).long(), **options)
    states = output.hidden_states if options.get("output_hidden_states") else [output.last_hidden_state]
    found = [state[mask] for state in states]
    if options.get("output_router_logits"):
        found.append(routing_weights(output.router_logits)[mask.flatten()])
    return found
