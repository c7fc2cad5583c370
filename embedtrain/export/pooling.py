"""Pooling heads as modules of a sentence-transformers folder.

Cls, Eos, Mean, WeightedMean, Max   Pooling, in one of its modes
FirstLast, LayerAverage             WeightedLayerPooling with weight on some layers, then Pooling
LatentAttention                     a module file that travels with the model: loading needs trust_remote_code=True
MultiVector                         multi_vector.py
Splade                              sparse.py
Projected                           what is in front, then a Dense for each of its layers
others of ours                      heads.py: sentence-transformers cannot load them, embedtrain can
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from embedtrain.data.prompts import PLACEHOLDER, TEXT
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export import layout
from embedtrain.export.heads import HEADS
from embedtrain.export.multi_vector import check_multi_vector, write_multi_vector
from embedtrain.export.sparse import check_splade, write_splade
from embedtrain.export.tensors import save_linear, save_tensors
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.projected import ProjectedPooling
from embedtrain.pooling.splade import SpladePooling
from embedtrain.pooling.weighted_mean import WeightedMeanPooling

MODES: dict[str, type[nn.Module]] = {
    "cls": ClsPooling,
    "lasttoken": EosPooling,
    "max": MaxPooling,
    "mean": MeanPooling,
    "weightedmean": WeightedMeanPooling,
}
_MODE_OF = {kind: mode for mode, kind in MODES.items()}
# These read one token, at an end of the text, whether the prompt is pooled or not.
_ONE_TOKEN = (ClsPooling, EosPooling)
_FIRST_WORDS = ("text", "The", "a", "1", "é", "(")


def check_pooling(encoder: Encoder) -> None:
    """Raises ConfigError for a head that no folder can hold, and for what the folder of its kind cannot say."""
    for key, head in (("pooling", encoder.pooling), *((f"encoder.views.{n}", v) for n, v in encoder.views.items())):
        if type(head) not in HEADS.values():
            raise ConfigError(
                f"{key}: {type(head).__name__} cannot be exported: it is no head of embedtrain. "
                f"Can be exported: {', '.join(sorted(HEADS))}."
            )
    several = isinstance(encoder.pooling, MultiVectorPooling | SpladePooling)
    if several and encoder.tokenizer.prompts.same_behind() is None:
        raise ConfigError(
            f"prompts: with {type(encoder.pooling).__name__} an export needs the same behind queries and documents, or nothing. "
            f"Change the templates behind {TEXT}."
        )
    if isinstance(encoder.pooling, MultiVectorPooling):
        check_multi_vector(encoder, encoder.pooling)
    if isinstance(encoder.pooling, SpladePooling):
        check_splade(encoder, encoder.pooling)


def kind_of(pooling: nn.Module) -> layout.Kind:
    """The class of sentence-transformers that loads the folder."""
    if isinstance(pooling, MultiVectorPooling):
        return "MultiVectorEncoder"
    return "SparseEncoder" if isinstance(pooling, SpladePooling) else "SentenceTransformer"


def is_ours_alone(encoder: Encoder) -> bool:
    """Whether sentence-transformers has no module for the head, or no place for its prompts: embedtrain alone loads the folder.

    A prompt's end that stands behind every text is a part of the exported tokenizer, which knows no role.
    """
    known = (*_MODE_OF, FirstLastPooling, LatentAttentionPooling, MultiVectorPooling, SpladePooling)
    return _reader(encoder.pooling) not in known or encoder.tokenizer.prompts.same_behind() is None


def ships_code(pooling: nn.Module) -> bool:
    """Whether the folder holds a module of its own, so that loading it needs `trust_remote_code=True`."""
    return isinstance(_in_front(pooling), LatentAttentionPooling)


def write_pooling(encoder: Encoder, folder: Path, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Write the modules that pool, numbered from 1, and return them as (class, name) for modules.json."""
    if is_ours_alone(encoder):
        layout.write_json(folder / "1_Pooling" / "config.json", {"include_prompt": _include_prompt(encoder)})
        return [(f"embedtrain.pooling.{type(encoder.pooling).__name__}", "Pooling")]
    written = _write_head(encoder, _in_front(encoder.pooling), folder, dtype)
    if isinstance(encoder.pooling, ProjectedPooling):
        last = len(encoder.pooling.layers) - 1
        for number, layer in enumerate(encoder.pooling.layers):
            assert isinstance(layer, nn.Linear)
            between = layout.RELU if encoder.pooling.activation and number < last else layout.IDENTITY
            save_linear(layer, folder / f"{len(written) + 1}_Dense", dtype, activation=between)
            written.append((layout.DENSE, "Dense"))
    return written


def _write_head(encoder: Encoder, head: nn.Module, folder: Path, dtype: torch.dtype) -> list[tuple[str, str]]:
    """The encoder's head without the layers behind it."""
    if isinstance(head, LatentAttentionPooling):
        return _write_latent_attention(head, folder, dtype, include_prompt=_include_prompt(encoder))
    if isinstance(head, MultiVectorPooling):
        return write_multi_vector(encoder, head, folder, dtype)
    if isinstance(head, SpladePooling):
        return write_splade(head, folder)
    written = []
    if isinstance(head, FirstLastPooling):
        written.append(_write_layer_weights(encoder, folder, (1, -1)))
    if isinstance(head, LayerAveragePooling):
        written.append(_write_layer_weights(encoder, folder, head.layers))
    config = layout.pooling_config(
        _MODE_OF.get(_reader(head), "mean"),
        hidden_size=_hidden_size(encoder),
        include_prompt=_include_prompt(encoder),
    )
    layout.write_json(folder / f"{len(written) + 1}_Pooling" / "config.json", config)
    return [*written, (layout.POOLING, "Pooling")]


def _in_front(pooling: nn.Module) -> nn.Module:
    """The head in front of linear layers."""
    return pooling.pooling if isinstance(pooling, ProjectedPooling) else pooling


def _reader(pooling: nn.Module) -> type[nn.Module]:
    """What reads the tokens, in front of linear layers and behind an average of layers, or without them."""
    head = _in_front(pooling)
    return type(head.pooling if isinstance(head, LayerAveragePooling) else head)


def _write_layer_weights(encoder: Encoder, folder: Path, wanted: Sequence[int]) -> tuple[str, str]:
    layers = encoder.backbone.config.num_hidden_layers  # type: ignore[union-attr]
    weights = torch.zeros(int(layers) + 1)  # type: ignore[arg-type]  # of the embedding, then of each layer
    for layer in wanted:
        weights[layer] += 1
    target = folder / "1_WeightedLayerPooling"
    layout.write_json(
        target / "config.json",
        {"word_embedding_dimension": _hidden_size(encoder), "layer_start": 0, "num_hidden_layers": layers},
    )
    save_tensors({"layer_weights": weights}, target, torch.float32)
    # sentence-transformers hands all layers on where the model's own config asks for them.
    config = layout.read_json(folder / "config.json")
    layout.write_json(folder / "config.json", config | {"output_hidden_states": True})
    return layout.WEIGHTED_LAYERS, "WeightedLayerPooling"


def _write_latent_attention(
    pooling: LatentAttentionPooling, folder: Path, dtype: torch.dtype, *, include_prompt: bool
) -> list[tuple[str, str]]:
    target = folder / "1_LatentAttention"
    layout.write_json(
        target / "config.json",
        {
            "hidden_size": pooling.contract.out_features,
            "num_latents": pooling.num_latents,
            "num_heads": pooling.num_heads,
            "head_dim": pooling.head_dim,
            "expansion": pooling.expansion,
            "include_prompt": include_prompt,
        },
    )
    save_tensors(pooling.state_dict(), target, dtype)
    shutil.copyfile(Path(__file__).parent / "modules" / "latent_attention_st.py", folder / layout.LATENT_ATTENTION_FILE)
    return [(layout.LATENT_ATTENTION, "LatentAttention")]


def _hidden_size(encoder: Encoder) -> int:
    return int(encoder.backbone.hidden_size)  # type: ignore[arg-type]


def _include_prompt(encoder: Encoder) -> bool:
    return encoder.tokenizer.prompts.pool_prompt or issubclass(_reader(encoder.pooling), _ONE_TOKEN)


def check_prompt_borders(encoder: Encoder) -> None:
    """Raises ConfigError when prompt tokens are left out of pooling and sentence-transformers would leave out others.

    It counts the tokens of the prompt alone; a prompt that ends in a blank may share its last token with the text.
    """
    if _include_prompt(encoder) or is_ours_alone(encoder):
        return
    tokenizer = encoder.tokenizer
    if tokenizer.prompts.same_behind():
        raise ConfigError(
            f"prompts: what stands behind {TEXT} cannot be exported with prompts.pool_prompt=false: sentence-transformers leaves "
            "out what is before a text and nothing behind it. Set it to true, or end the templates in the text."
        )
    for role, template in tokenizer.prompts.templates.items():
        prompt = template.partition(TEXT)[0].replace(PLACEHOLDER, "the task")
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
