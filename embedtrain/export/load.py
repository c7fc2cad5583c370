"""Read a sentence-transformers folder back as an Encoder: ours, or anybody's whose modules we know.

`read_model_folder` (folder.py) says what is in the folder and refuses by name what we do not have; `load_encoder` builds
it. No code of the folder is run: latent attention is recognised and built from our own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import normalizers
from torch import nn
from transformers import PreTrainedTokenizerBase

from embedtrain.backbones.facts import head_facts
from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.backbones.locate import locate
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.export.folder import ModelFolder, PoolingFolder, read_model_folder
from embedtrain.export.heads import read_heads
from embedtrain.export.pooling import MODES
from embedtrain.export.tensors import linear_size, load_linear, load_tensors
from embedtrain.export.tokenizer import ends_with
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.learned_tokens import closing_ids
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.splade import SpladePooling

# What a text model on a hub needs; weights in other formats than safetensors are not read, and code is not run.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def load_encoder(folder: str | Path, *, backbone: Mapping[str, Any] | None = None) -> Encoder:
    """The encoder in a sentence-transformers folder, with its pooling, views, projection, norm, prompts and lengths.

    folder: a folder, a run directory, `package://<package>/<folder>`, or a name on the model hub.
    backbone: further arguments of `TransformerBackbone`, such as `lora` or `dtype`.

    Raises CheckpointError where the folder is incomplete or holds a module that we do not have.
    """
    model = read_model_folder(local_folder(folder))
    transformer = TransformerBackbone(name=str(model.transformer), **(backbone or {}))
    tokenizer = transformer.tokenizer()
    ours, views = read_heads(model.path, transformer, tokenizer)
    pooling = ours or _pooling(model.pooling, transformer, tokenizer)
    projection = model.pooling.projection
    feature = "token_embeddings" if isinstance(pooling, MultiVectorPooling) else "sentence_embedding"
    encoder = Encoder(
        backbone=transformer,
        pooling=pooling,
        tokenizer=_text_tokenizer(model, transformer, tokenizer, pooling),
        normalize=model.pooling.normalize,
        projection_dim=None if projection is None else linear_size(projection, feature=feature)[0],
        views=views,
    )
    if projection is not None and encoder.projection is not None:
        load_linear(encoder.projection, projection)
    return encoder


def local_folder(model: str | Path) -> Path:
    """The folder of a model: of a run directory, inside a package (`package://...`), as named, or fetched from the hub.

    Raises CheckpointError where there is none.
    """
    named = Path(locate(str(model)))
    if (named / "model" / "modules.json").is_file():
        return named / "model"
    if named.is_dir():
        return named
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_FILES)))
    except Exception as error:  # the hub client raises a dozen kinds; each means that there is no folder
        raise CheckpointError(
            f"{model} is no folder here, and no model could be fetched under this name: {error}"
        ) from error


def _pooling(said: PoolingFolder, backbone: TransformerBackbone, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    facts, options = head_facts(backbone, tokenizer), dict(said.options)
    if said.name in MODES:
        return MODES[said.name]()
    if said.name == "layer_average":
        inner = MODES[options["pooling"]]()
        if options == {"layers": [1, facts["num_layers"]], "pooling": "mean"}:
            return FirstLastPooling()
        return LayerAveragePooling(layers=options["layers"], pooling=inner, num_layers=facts["num_layers"])
    if said.name == "splade":
        return SpladePooling(lm_head=LanguageModelHead(backbone), vocab_size=facts["vocab_size"], **options)
    if said.name == "multi_vector":
        known = {name: facts[name] for name in ("hidden_size", "punctuation_ids")}
        head = MultiVectorPooling(**known, **options)
        if head.linear is not None and said.weights is not None:
            load_linear(head.linear, said.weights)
        return head
    if said.name == "latent_attention" and said.weights is not None:
        latent = LatentAttentionPooling(**options)
        latent.load_state_dict(load_tensors(said.weights))
        return latent
    raise CheckpointError(f"{said.name}: its files in embedtrain/ are missing: the folder is not complete.")


def _text_tokenizer(
    model: ModelFolder, backbone: TransformerBackbone, tokenizer: PreTrainedTokenizerBase, pooling: nn.Module
) -> TextTokenizer:
    if model.lower_case:
        _lower(tokenizer)
    # Where sentence-transformers finds no limit it takes the smaller of what tokenizer and positions allow.
    longest = min(
        tokenizer.model_max_length, getattr(backbone.config, "max_position_embeddings", tokenizer.model_max_length)
    )
    if longest > 1 << 30 and None in (model.max_query_length, model.max_document_length):
        raise CheckpointError(
            f"{model.transformer}: no maximum length is given. Set max_seq_length in sentence_bert_config.json."
        )
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return TextTokenizer(
        tokenizer=tokenizer,
        prompts=Prompts(
            query=model.prompts.get("query", ""),
            document=model.prompts.get("document", ""),
            pool_prompt=model.pooling.include_prompt,
        ),
        max_query_length=model.max_query_length or longest,
        max_document_length=model.max_document_length or longest,
        append_eos=getattr(pooling, "reads_last_token", False) and any(ends_with(tokenizer, t) for t in closing),
        query_augmentation=model.query_augmentation,
        closing_ids=closing_ids(pooling),
    )


def _lower(tokenizer: PreTrainedTokenizerBase) -> None:
    backend = tokenizer.backend_tokenizer
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
