"""Pooling heads as modules of a sentence-transformers folder.

Cls, Eos, Mean, WeightedMean, Max   Pooling, in one of its modes
FirstLast                           WeightedLayerPooling with weight on two layers, then Pooling by mean
LatentAttention                     a module file that travels with the model: loading needs trust_remote_code=True
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from embedtrain.data.prompts import PLACEHOLDER
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export import layout
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.weighted_mean import WeightedMeanPooling

MODES: dict[str, type[nn.Module]] = {
    "cls": ClsPooling,
    "lasttoken": EosPooling,
    "max": MaxPooling,
    "mean": MeanPooling,
    "weightedmean": WeightedMeanPooling,
}
_MODE_OF = {kind: mode for mode, kind in MODES.items()}
_EXPORTABLE = (*_MODE_OF, FirstLastPooling, LatentAttentionPooling)
# These read one token, at an end of the text, whether the prompt is pooled or not.
_ONE_TOKEN = (ClsPooling, EosPooling)
_FIRST_WORDS = ("text", "The", "a", "1", "é", "(")


def check_pooling(pooling: nn.Module) -> None:
    """Raises ConfigError for a head that no module of sentence-transformers stands for."""
    if type(pooling) not in _EXPORTABLE:
        raise ConfigError(
            f"pooling: {type(pooling).__name__} cannot be exported: sentence-transformers has no module that computes it. "
            f"Can be exported: {', '.join(sorted(kind.__name__ for kind in _EXPORTABLE))}."
        )


def ships_code(pooling: nn.Module) -> bool:
    """Whether the folder holds a module of its own, so that loading it needs `trust_remote_code=True`."""
    return isinstance(pooling, LatentAttentionPooling)


def write_pooling(encoder: Encoder, folder: Path, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Write the modules that pool, numbered from 1, and return them as (class, name) for modules.json."""
    if isinstance(encoder.pooling, LatentAttentionPooling):
        return _write_latent_attention(encoder.pooling, folder, dtype, include_prompt=_include_prompt(encoder))
    written = []
    if isinstance(encoder.pooling, FirstLastPooling):
        written.append(_write_first_last(encoder, folder))
    config = layout.pooling_config(
        _MODE_OF.get(type(encoder.pooling), "mean"),
        hidden_size=_hidden_size(encoder),
        include_prompt=_include_prompt(encoder),
    )
    layout.write_json(folder / f"{len(written) + 1}_Pooling" / "config.json", config)
    return [*written, (layout.POOLING, "Pooling")]


def _write_first_last(encoder: Encoder, folder: Path) -> tuple[str, str]:
    layers = encoder.backbone.config.num_hidden_layers  # type: ignore[union-attr]
    weights = torch.zeros(int(layers) + 1)  # type: ignore[arg-type]  # of the embedding, then of each layer
    weights[1] += 1
    weights[-1] += 1
    target = folder / "1_WeightedLayerPooling"
    layout.write_json(
        target / "config.json",
        {"word_embedding_dimension": _hidden_size(encoder), "layer_start": 0, "num_hidden_layers": layers},
    )
    _save({"layer_weights": weights}, target, torch.float32)
    # sentence-transformers hands all layers on where the model's own config asks for them.
    config = layout.read_json(folder / "config.json")
    layout.write_json(folder / "config.json", config | {"output_hidden_states": True})
    return layout.WEIGHTED_LAYERS, "WeightedLayerPooling"


def _write_latent_attention(
    pooling: LatentAttentionPooling, folder: Path, dtype: torch.dtype, *, include_prompt: bool
) -> list[tuple[str, str]]:
    num_latents, hidden_size = pooling.latents.shape
    target = folder / "1_LatentAttention"
    layout.write_json(
        target / "config.json",
        {
            "hidden_size": hidden_size,
            "num_latents": num_latents,
            "num_heads": pooling.num_heads,
            "head_dim": pooling.head_dim,
            "expansion": pooling.contract.in_features // hidden_size,
            "include_prompt": include_prompt,
        },
    )
    _save(pooling.state_dict(), target, dtype)
    shutil.copyfile(Path(__file__).parent / "modules" / "latent_attention_st.py", folder / layout.LATENT_ATTENTION_FILE)
    return [(layout.LATENT_ATTENTION, "LatentAttention")]


def _save(tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _hidden_size(encoder: Encoder) -> int:
    return int(encoder.backbone.hidden_size)  # type: ignore[arg-type]


def _include_prompt(encoder: Encoder) -> bool:
    return encoder.tokenizer.prompts.pool_prompt or isinstance(encoder.pooling, _ONE_TOKEN)


def check_prompt_borders(encoder: Encoder) -> None:
    """Raises ConfigError when prompt tokens are left out of pooling and sentence-transformers would leave out others.

    It counts the tokens of the prompt alone; a prompt that ends in a blank may share its last token with the text.
    """
    if _include_prompt(encoder):
        return
    tokenizer = encoder.tokenizer
    for role, template in tokenizer.prompts.templates.items():
        prompt = template.replace(PLACEHOLDER, "the task")
        alone = _tokens_alone(tokenizer, prompt)
        for word in _FIRST_WORDS if prompt else ():
            together = _tokens_before_text(tokenizer, prompt, word)
            if alone != together:
                raise ConfigError(
                    f"prompts.{role}: {template!r} cannot be exported with prompts.pool_prompt=false: alone it has {alone} "
                    f"tokens, before {word!r} {together}, and sentence-transformers leaves out as many as it has alone. Let "
                    "the prompt end in a character that never joins a word, such as ':' or a line break, without a blank."
                )


def _tokens_alone(tokenizer: TextTokenizer, prompt: str) -> int:
    ids = tokenizer.hf(prompt)["input_ids"]
    closing = len(ids) > 0 and (ids[-1] in tokenizer.hf.all_special_ids)
    return len(ids) - closing


def _tokens_before_text(tokenizer: TextTokenizer, prompt: str, text: str) -> int:
    encoded = tokenizer.hf(prompt + text, return_offsets_mapping=True, return_special_tokens_mask=True)
    pairs = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    return next(i for i, ((_, end), special) in enumerate(pairs) if end > len(prompt) and not special)
