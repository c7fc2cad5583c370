"""Read a model folder as an Encoder: ours, anybody's of sentence-transformers whose modules we know, or a published layout.

`describe` (published/) says what is in the folder and refuses by name what we do not have; `load_encoder` builds it, `take_heads`
gives the weights of its heads to an encoder that a run describes. No code of the folder is run: modules that travel with it
(latent attention, a bridge, a context) are recognised and built from our own classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import AddedToken, normalizers
from torch import nn
from transformers import PreTrainedTokenizerBase

from embedtrain.backbones.bridge import BridgeBackbone
from embedtrain.backbones.contextual import ContextualBackbone
from embedtrain.backbones.facts import head_facts
from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.backbones.locate import locate
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError, MissingModelError
from embedtrain.export.bridge import read_bridge
from embedtrain.export.contextual import is_contextual, load_backbone, take_context
from embedtrain.export.folder import ModelFolder, PoolingFolder, dense_of
from embedtrain.export.heads import read_heads
from embedtrain.export.pooling import MODES
from embedtrain.export.published import describe
from embedtrain.export.published.weights import fill
from embedtrain.export.tensors import load_map, load_tensors, map_size
from embedtrain.export.tokenizer import ends_with
from embedtrain.pooling.bge_m3_sparse import BgeM3SparsePooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.learned_tokens import closing_ids
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.projected import ProjectedPooling
from embedtrain.pooling.splade import SpladePooling
from embedtrain.pooling.trainable import TrainablePooling

log = logging.getLogger("embedtrain")

# What a text model on a hub needs, and heads beside it; code is not fetched.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "artifact.metadata", "*_linear.pt", "attn_pool.pt")
# For a model without safetensors. transformers builds tensors of it and runs nothing.
_PICKLES = ("pytorch_model*.bin",)
# Heads that have weights in files of published layouts.
_WITH_WEIGHTS: dict[str, type[nn.Module]] = {
    "latent_attention": LatentAttentionPooling,
    "bge_m3_sparse": BgeM3SparsePooling,
    "multi_vector": MultiVectorPooling,
    "trainable": TrainablePooling,
    "projected": ProjectedPooling,
}


def load_encoder(folder: str | Path, *, backbone: Mapping[str, Any] | None = None, dim: int | None = None) -> Encoder:
    """The encoder in a model folder, with its pooling, views, projection, norm, prompts and lengths.

    folder: a folder, a run directory, `package://<package>/<folder>`, or a name on the model hub.
    backbone: further arguments of `TransformerBackbone`, such as `lora` or `dtype`; of a bridge those of both halves.
    dim: dimensions of the embedding, where the folder has a layer for each of several, or its first so many (Matryoshka).

    Raises CheckpointError where the folder is incomplete or holds a module that we do not have.
    """
    model = describe(local_folder(folder))
    if model.unsupported is not None:
        raise CheckpointError(f"{model.path} cannot be read as it was published: {model.unsupported}.")
    if dim is not None:
        model = dense_of(model, dim)
    transformer: TransformerBackbone | BridgeBackbone
    if model.bridge is None:
        transformer = load_backbone(model.transformer, backbone or {})
    else:
        transformer = read_bridge(model.transformer, model.bridge, backbone or {})
    tokenizer = transformer.tokenizer()
    ours, views = read_heads(model.path, transformer, tokenizer)
    pooling = ours or _pooling(model.pooling, transformer, tokenizer)
    encoder = Encoder(
        backbone=transformer,
        pooling=pooling,
        tokenizer=_text_tokenizer(model, transformer, tokenizer, pooling),
        normalize=model.pooling.normalize,
        projection_dim=_projection_dim(model, pooling),
        views=views | {name: _pooling(view, transformer, tokenizer) for name, view in model.views.items()},
    )
    if encoder.projection is not None:
        load_map(encoder.projection, model.pooling.projection)
    return encoder


def take_heads(encoder: Encoder, folder: str | Path) -> None:
    """Gives heads and projection of `encoder` the weights that heads of their kind have in a model folder, and says so.

    What the folder does not have stays as it is. Raises ConfigError where it has a head of the kind in other sizes, and for the
    folder of a contextual model (`export/contextual.py`) whose context the encoder does not read.
    """
    _take_context(encoder, Path(folder))
    heads = {"pooling": encoder.pooling, **{f"encoder.views.{name}": view for name, view in encoder.views.items()}}
    wanting = {key: head for key, head in heads.items() if isinstance(head, tuple(_WITH_WEIGHTS.values()))}
    if not wanting and encoder.projection is None and not isinstance(encoder.pooling, ProjectedPooling):
        return
    try:
        model = describe(local_folder(folder))
    except CheckpointError as reason:
        log.info("heads beside the backbone are new: %s", reason)
        return
    for key, head in wanting.items():
        for said in (model.pooling, *model.views.values()):
            if isinstance(head, _WITH_WEIGHTS.get(said.name, ())) and _has_weights(said):
                try:
                    _fill(head, said)
                except CheckpointError as error:
                    raise ConfigError(
                        f"{key}: {error} Give it the sizes of the folder, or take another backbone."
                    ) from None
                log.info("%s: weights of %s are those of %s", key, type(head).__name__, model.path)
    if encoder.projection is not None and model.pooling.projection:
        _take_projection(encoder.projection, model)
    if isinstance(encoder.pooling, ProjectedPooling) and model.pooling.projection:
        _take_layers(encoder.pooling, model.pooling.projection)


def _take_context(encoder: Encoder, folder: Path) -> None:
    if not is_contextual(folder):
        return
    if not isinstance(encoder.backbone, ContextualBackbone):
        raise ConfigError(
            f"backbone.name={folder}: it holds two encoders, one of which reads other documents in front of each text. Set "
            "backbone=contextual."
        )
    try:
        take_context(encoder.backbone, folder)
    except CheckpointError as error:
        raise ConfigError(f"backbone: {error} Give it the sizes of the folder, or take another backbone.") from None
    log.info("backbone: both encoders and the layers around them are those of %s", folder)


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
        fetched = Path(snapshot_download(str(model), allow_patterns=list(_FILES)))
        if not any(fetched.glob("*.safetensors")):
            snapshot_download(str(model), allow_patterns=list(_PICKLES))
        return fetched
    except Exception as error:  # the hub client raises a dozen kinds; each means that there is no folder
        raise MissingModelError(
            f"{model} is no folder here, and no model could be fetched under this name: {error}"
        ) from error


def _pooling(
    said: PoolingFolder, backbone: TransformerBackbone | BridgeBackbone, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    head = _new_pooling(said, backbone, tokenizer)
    if _has_weights(said) and (said.state is None or backbone.weights == "pretrained"):
        _fill(head, said)
    return head


def _new_pooling(
    said: PoolingFolder, backbone: TransformerBackbone | BridgeBackbone, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    facts, options = head_facts(backbone, tokenizer), dict(said.options)
    if said.name in MODES:
        return MODES[said.name]()
    if said.name == "layer_average":
        inner = MODES[options["pooling"]]()
        if options == {"layers": [1, facts["num_layers"]], "pooling": "mean"}:
            return FirstLastPooling()
        return LayerAveragePooling(layers=options["layers"], pooling=inner, num_layers=facts["num_layers"])
    if said.name == "splade":
        assert isinstance(backbone, TransformerBackbone)  # a SparseEncoder has one model
        return SpladePooling(lm_head=LanguageModelHead(backbone), vocab_size=facts["vocab_size"], **options)
    if said.name == "multi_vector":
        known = {name: facts[name] for name in ("hidden_size", "punctuation_ids")}
        return MultiVectorPooling(**known, **options)
    if said.name == "bge_m3_sparse":
        return BgeM3SparsePooling(**{name: facts[name] for name in ("hidden_size", "vocab_size", "special_ids")})
    if said.name == "projected":
        inner = MODES[options.pop("pooling")]()
        return ProjectedPooling(pooling=inner, hidden_size=facts["hidden_size"], **options)
    if said.name == "latent_attention":
        return LatentAttentionPooling(**options)
    raise CheckpointError(f"{said.name}: its files in embedtrain/ are missing: the folder is not complete.")


def _has_weights(said: PoolingFolder) -> bool:
    return said.state is not None or said.weights is not None


def _fill(head: nn.Module, said: PoolingFolder) -> None:
    """The head's weights out of its files. Raises CheckpointError naming keys and shapes that do not fit."""
    if said.state is not None:
        fill(head, said.state(), "the folder's head")
    elif isinstance(head, MultiVectorPooling) and head.linear is not None and said.weights is not None:
        load_map(head.linear, [said.weights])
    elif isinstance(head, LatentAttentionPooling) and said.weights is not None:
        fill(head, load_tensors(said.weights), str(said.weights))


def _projection_dim(model: ModelFolder, pooling: nn.Module) -> int | None:
    """Dimensions behind the linear layers, or of what is kept; None where there is nothing behind the head."""
    several = isinstance(pooling, MultiVectorPooling)
    feature = "token_embeddings" if several else "sentence_embedding"
    made = map_size(model.pooling.projection, feature=feature)[0] if model.pooling.projection else None
    if model.dim is not None and (several or getattr(pooling, "as_is", False)):
        raise CheckpointError(
            f"{model.path}: embeddings of {type(pooling).__name__} cannot be cut to {model.dim} dimensions. Leave it out."
        )
    return made if model.dim is None else model.dim


def _take_projection(projection: nn.Linear, model: ModelFolder) -> None:
    feature = "token_embeddings" if model.pooling.name == "multi_vector" else "sentence_embedding"
    try:
        model = dense_of(model, projection.out_features)
        if map_size(model.pooling.projection, feature=feature)[0] != projection.out_features:
            raise CheckpointError(f"{model.path} has none to {projection.out_features} dimensions.")
        load_map(projection, model.pooling.projection)
    except CheckpointError as reason:
        log.info("encoder.projection_dim: the layer is new: %s", reason)
        return
    log.info("encoder.projection_dim: weights are those of %s", ", ".join(map(str, model.pooling.projection)))


def _take_layers(pooling: ProjectedPooling, folders: tuple[Path, ...]) -> None:
    """The layers behind the head, each by itself, where the folder has the same."""
    if [map_size([folder])[0] for folder in folders] != pooling.sizes:
        log.info("pooling.sizes: the layers are new: those of %s have other sizes", ", ".join(map(str, folders)))
        return
    for layer, folder in zip(pooling.layers, folders, strict=True):
        assert isinstance(layer, nn.Linear)
        load_map(layer, [folder])
    log.info("pooling: weights of its layers are those of %s", ", ".join(map(str, folders)))


def _text_tokenizer(
    model: ModelFolder,
    backbone: TransformerBackbone | BridgeBackbone,
    tokenizer: PreTrainedTokenizerBase,
    pooling: nn.Module,
) -> TextTokenizer:
    if model.lower_case:
        _lower(tokenizer)
    _register(tokenizer, model.markers)
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
        append_eos=model.append_eos
        or (getattr(pooling, "reads_last_token", False) and any(ends_with(tokenizer, t) for t in closing)),
        query_augmentation=model.query_augmentation,
        attend_to_masks=model.attend_to_masks,
        closing_ids=closing_ids(pooling),
    )


def _register(tokenizer: PreTrainedTokenizerBase, markers: tuple[str, ...]) -> None:
    """Makes each marker the one token that the vocabulary has of it: the whole, or its first word.

    One that the vocabulary has not is text, and is left to the tokenizer.
    """
    vocabulary = tokenizer.get_vocab()
    for marker in markers:
        known = [token for token in _readings(marker) if token in vocabulary]
        if known and tokenizer.tokenize(known[0]) != known[:1]:
            tokenizer.add_tokens([AddedToken(known[0], normalized=False, special=True)], special_tokens=True)


def _readings(marker: str) -> Iterator[str]:
    yield marker
    yield from marker.split(None, 1)[:1]


def _lower(tokenizer: PreTrainedTokenizerBase) -> None:
    backend = tokenizer.backend_tokenizer
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
