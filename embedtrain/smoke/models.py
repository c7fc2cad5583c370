"""Random models of real families, small enough for any machine, as folders that load by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from embedtrain.backbones.loading import load_config
from embedtrain.backbones.locate import locate
from embedtrain.pinned import PinnedModel, pinned

WIDTH, LAYERS, HEADS, VOCABULARY = 64, 2, 4, 1024
_ENCODER_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}

# What makes a model of any family small, by the keys that families use.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "dim", "d_model", "n_embd"), WIDTH),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "n_inner", "shared_expert_intermediate_size"), WIDTH + 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head"), HEADS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    "query_pre_attn_scalar": WIDTH // HEADS,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "global_attn_every_n_layers": 2,
    "local_attention": 16,
}


def small_config(config: Any, changes: Mapping[str, Any]) -> Any:
    """A transformers configuration of the same family. `changes`: keys that win over the usual ones."""
    known = config.to_dict()
    small: dict[str, Any] = {key: size for key, size in _SIZES.items() if known.get(key) is not None}
    for key in ("max_position_embeddings", "n_positions"):
        if known.get(key) is not None:
            small[key] = min(known[key], 514)
    if known.get("layer_types"):  # one of each kind, the first kind first
        kinds = list(dict.fromkeys(known["layer_types"]))
        small["layer_types"] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    kept = {key: value for key, value in known.items() if key not in ("model_type", "architectures", "torch_dtype")}
    return AutoConfig.for_model(config.model_type, **{**kept, **small, **changes})


def small_model(name: str, texts: Iterable[str], folder: Path, **changes: Any) -> str:
    """A folder with a random model of the family of `name`, a tokenizer learned from `texts`, and mean pooling.

    name: of a pinned model, or whatever a configuration can be read from. One that ships nothing but a dimension is a BERT, and
    so is "", a model that the recipe leaves to its user.
    """
    if (folder / "modules.json").is_file():
        return str(folder)
    known = pinned(name) or PinnedModel(name, {}, {}, None, None)
    if known.config:
        config = known.transformers_config()
    elif not name or pinned(name) is not None:
        config = AutoConfig.for_model("bert")
    else:
        config = load_config(locate(name), {"revision": None, "trust_remote_code": False})
    tokenizer = small_tokenizer(texts, known.tokens or _ENCODER_TOKENS)
    ids = {
        f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("pad", "bos", "eos", "cls", "sep")
    }
    small = small_config(config, {"vocab_size": len(tokenizer), **ids, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(small)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_modules(folder, longest=64)
    return str(folder)


def small_tokenizer(texts: Iterable[str], tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Word pieces between [CLS] and [SEP] where the family has those tokens, else byte pairs with nothing around them."""
    special = {name: token for name, token in tokens.items() if token}
    if "pad_token" not in special and "eos_token" in special:
        special["pad_token"] = special["eos_token"]
    first, last = special.get("cls_token"), special.get("sep_token")
    learned: dict[str, Any] = {"vocab_size": VOCABULARY, "show_progress": False}
    if first and last:
        unknown = special.setdefault("unk_token", "[UNK]")
        plain = Tokenizer(WordPiece(unk_token=unknown))
        plain.normalizer = normalizers.BertNormalizer()
        plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = WordPieceTrainer(special_tokens=list(dict.fromkeys(special.values())), **learned)
    else:
        plain = Tokenizer(BPE())
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        plain.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            special_tokens=list(dict.fromkeys(special.values())),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            **learned,
        )
    plain.train_from_iterator(texts, trainer)
    if first and last:
        around = [(token, plain.token_to_id(token)) for token in dict.fromkeys((first, last))]
        plain.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=512, **special)


def _write_modules(folder: Path, longest: int) -> None:
    """What makes of a transformers folder one that a teacher is read from."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}), encoding="utf-8")
    pooling = folder / "1_Pooling"
    pooling.mkdir(exist_ok=True)
    said = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    (pooling / "config.json").write_text(json.dumps(said), encoding="utf-8")
