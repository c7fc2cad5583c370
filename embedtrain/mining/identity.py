"""All that the vectors of an encoder depend on, besides the texts and the prompts in front of them.

Two encoders of equal identity give equal vectors, up to rounding; a store of embeddings is found by it. So whatever changes a
vector must be in it (weights, tokenizer, lengths, pooling, norm, attention, arithmetic), and whatever does not must be
left out (device, ranks, folder, dropout), or nothing would ever be found again. A model that was exported and read back keeps its
identity: where its tokenizer has learnt to put the end token behind a text by itself, the tokens are the same.

Prompts and instructions are in the key of each text (`embedtrain.store.keys`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder

# Of a transformers config: where it came from, what it is trained with, what it gives out besides. None changes a state.
_NO_MATTER = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "return_dict", "problem_type"),
    *(
        "output_hidden_states",
        "output_attentions",
        "id2label",
        "label2id",
        "initializer_range",
        "gradient_checkpointing",
    ),
}
# Libraries whose modules say in `extra_repr`, or in the shapes of their weights, what they are.
_LIBRARIES = ("torch", "transformers", "peft")
# Texts whose tokens show what stands before and behind every text, also behind one that was cut.
_PROBES = ("a", "a b c d e f g h i j k l m n o p q r s t u v w x y z")
_CUT_AT = 16


def identity(encoder: Encoder) -> dict[str, Any]:
    """Names to JSON values, the same on all ranks. Rank 0 computes it; every weight passes through the CPU, one at a time."""
    return distributed.broadcast_object(_identity(encoder) if distributed.is_main() else {})


def _identity(encoder: Encoder) -> dict[str, Any]:
    tokenizer = encoder.tokenizer
    return {
        "weights": weights_hash(encoder.state_dict()),
        "tokenizer": _tokenizer_hash(tokenizer),
        "closing_ids": {role: list(ids) for role, ids in sorted(tokenizer.closing_ids.items())},
        "query_augmentation": tokenizer.query_augmentation,
        "attend_to_masks": tokenizer.attend_to_masks,
        "max_query_length": tokenizer.max_length["query"],
        "max_document_length": tokenizer.max_length["document"],
        "pool_prompt": tokenizer.prompts.pool_prompt,
        "pooling": _module_settings(encoder.pooling),
        "projection": encoder.projection is not None,
        "normalize": encoder.normalize,
        "attention": getattr(encoder.backbone, "direction", None),
        "backbone": type(encoder.backbone).__name__,
        "config": _config(encoder.backbone),
        "adapters": _adapter_scales(encoder.backbone),
        "arithmetic": str(encoder.encode_dtype or torch.float32).removeprefix("torch."),
        **_context(encoder),
    }


def _context(encoder: Encoder) -> dict[str, str | None]:
    """The vectors that are read in front of each text; nothing of an encoder that reads none."""
    if not encoder.num_context:
        return {}
    vectors: Tensor | None = encoder.backbone.context  # type: ignore[assignment]
    return {"context": None if vectors is None else weights_hash({"context": vectors})}


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """xxh3 of names, dtypes, shapes and bytes, in the order of the names."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_hash(tokenizer: TextTokenizer) -> str:
    """Of the vocabulary, the rules, and what is put around a text, by whomever.

    Truncation and padding are left out, which every call sets; so is the post-processor, in whose place stands what it does.
    """
    content = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    rules = {name: content[name] for name in content if name not in ("truncation", "padding", "post_processor")}
    encodings = tokenizer.encodings(_PROBES, [_CUT_AT] * len(_PROBES))
    around = [
        (
            tokenizer.closed(one.ids),
            [place for place, special in zip(one.offsets, one.special_tokens_mask, strict=True) if not special],
        )
        for one in encodings
    ]
    return _hash([rules, around, tokenizer.hf.mask_token_id])


def _module_settings(module: nn.Module) -> dict[str, Any]:
    """Class and settings of a head, and of every module in it, by its place there."""
    said: dict[str, Any] = {}
    for name, part in module.named_modules():
        library = type(part).__module__.partition(".")[0] in _LIBRARIES
        settings = part.extra_repr() if library else _plain(vars(part))
        said[name] = {"class": f"{type(part).__module__}.{type(part).__qualname__}", "settings": settings}
    return said.pop("") | {"parts": _hash(said)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The public ones that JSON can hold."""
    return {
        name: value
        for name, value in sorted(values.items())
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _config(backbone: nn.Module) -> dict[str, Any]:
    """What the model's own config says of its arithmetic: heads, activations, rotary bases, windows."""
    config: Any = getattr(backbone, "config", None)
    if config is None:
        return _plain(vars(backbone))
    return {
        name: value
        for name, value in sorted(json.loads(json.dumps(config.to_dict(), default=str)).items())
        if name not in _NO_MATTER and not name.startswith("_") and "drop" not in name
    }


def _adapter_scales(backbone: nn.Module) -> str | None:
    """Of LoRA: its weights are among the weights, and this is what they are multiplied by."""
    scales = {
        name: module.scaling
        for name, module in backbone.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    return _hash(scales) if scales else None


def _hash(value: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())
