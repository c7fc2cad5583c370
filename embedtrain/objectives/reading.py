"""What objectives read off an encoder, and what they refuse to read."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.backbones.direction import Direction
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens


def backbone_of(encoder: Encoder) -> TransformerBackbone:
    """The backbone, with the language model that its head is read from. Raises ConfigError for one of another kind."""
    if not isinstance(encoder.backbone, TransformerBackbone):
        raise ConfigError(
            f"objective: needs embedtrain.backbones.transformer.TransformerBackbone, got {type(encoder.backbone).__name__}."
        )
    return encoder.backbone


def require_direction(encoder: Encoder, wanted: Direction, why: str) -> None:
    """Raises ConfigError where attention looks the other way."""
    found = direction_of(backbone_of(encoder))
    if found != wanted:
        raise ConfigError(f"backbone.attention: {found}, but the objective needs {wanted}: {why}.")


def direction_of(backbone: TransformerBackbone) -> Direction:
    """As observed; where nothing runs (on the meta device), as its class and config have it."""
    if backbone.direction is not None:
        return backbone.direction
    causal_class = any(getattr(module, "is_causal", False) for module in backbone.hf_model.modules())
    return "causal" if causal_class and getattr(backbone.config, "is_causal", True) else "bidirectional"


def require_embedding(encoder: Encoder) -> None:
    """Raises ConfigError where pooling does not give one vector of the hidden size for each text."""
    pooling, size = encoder.pooling, backbone_of(encoder).hidden_size
    found = "several vectors" if getattr(pooling, "multi_vector", False) else getattr(pooling, "output_dim", size)
    if found != size:
        raise ConfigError(
            f"pooling: the objective reads one vector of {size} dimensions per text, as wide as a hidden state, but "
            f"{type(pooling).__name__} gives {found}. Use cls, mean or eos in this stage."
        )


def states_and_embedding(encoder: Encoder, tokens: RaggedTokens) -> tuple[Tensor, Tensor]:
    """The last hidden states [S, H], and what pooling makes of a text, [N, H]: before projection and norm."""
    if getattr(encoder.pooling, "needs_layers", False):
        layers = encoder.backbone(tokens, all_layers=True)
        return layers[-1], encoder.pooling(layers, tokens)
    hidden = encoder.backbone(tokens)
    return hidden, encoder.pooling(hidden, tokens)


def input_embeddings(encoder: Encoder) -> nn.Module:
    """Ids -> what the first layer reads, [.., H]. The backbone's own: look it up at use, never keep it."""
    return backbone_of(encoder).hf_model.get_input_embeddings()


def longest_text(encoder: Encoder) -> int:
    """The most tokens that a text of this run may have."""
    return max(encoder.tokenizer.max_length.values())
