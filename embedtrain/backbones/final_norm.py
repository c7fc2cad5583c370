"""The norm that a model puts on the states of its last layer, and on those of no other."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

# As Llama, Qwen, Mistral, Gemma; ModernBERT; GPT-2; Phi; GPT-NeoX spell it. BERT and its kin have none.
_NAMES = ("norm", "final_norm", "ln_f", "final_layernorm", "final_layer_norm")


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Behind the last layer of `model`; the identity where there is none.

    An inner layer's states go through it to become what the model would give out, were it cut after that layer.
    """
    found = [module for name in _NAMES if isinstance(module := getattr(model, name, None), nn.Module)]
    return found[0] if found else nn.Identity()
