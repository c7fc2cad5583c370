"""Read a sentence-transformers folder back as an Encoder: ours, or anybody's whose modules we know.

`read_model_folder` says what is in the folder and refuses by name what we do not have; `load_encoder` builds it. Both
the layout of version 6 and that of the versions before are read. No code of the folder is run: latent attention is
recognised and built from our own class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from embedtrain.backbones.locate import locate
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.pooling import MODES
from embedtrain.export.tokenizer import ends_with
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling

log = logging.getLogger("embedtrain")

# What a text model on a hub needs; weights in other formats than safetensors are not read, and code is not run.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """What a sentence-transformers folder says, in our words."""

    path: Path
    transformer: Path  # folder of the transformers model and its tokenizer
    pooling: str  # a mode of `embedtrain.export.pooling.MODES`, "first_last" or "latent_attention"
    pooling_path: Path
    dense: Path | None
    normalize: bool
    prompts: Mapping[str, str]  # all of them, by name
    pool_prompt: bool
    max_query_length: int | None  # tokens; None: as long as model and tokenizer allow
    max_document_length: int | None
    lower_case: bool  # the texts, beyond what the tokenizer does itself
    similarity: str


def load_encoder(folder: str | Path, *, backbone: Mapping[str, Any] | None = None) -> Encoder:
    """The encoder in a sentence-transformers folder, with its pooling, projection, norm, prompts and lengths.

    folder: a folder, a run directory, `package://<package>/<folder>`, or a name on the model hub.
    backbone: further arguments of `TransformerBackbone`, such as `lora` or `dtype`.

    Raises CheckpointError where the folder is incomplete or holds a module that we do not have.
    """
    model = read_model_folder(local_folder(folder))
    transformer = TransformerBackbone(name=str(model.transformer), **(backbone or {}))
    encoder = Encoder(
        backbone=transformer,
        pooling=_pooling(model),
        tokenizer=_text_tokenizer(model, transformer),
        normalize=model.normalize,
        projection_dim=None
        if model.dense is None
        else int(layout.read_json(model.dense / "config.json")["out_features"]),
    )
    if model.dense is not None and encoder.projection is not None:
        _load_projection(encoder.projection, model.dense)
    return encoder


def read_model_folder(path: str | Path) -> ModelFolder:
    """What the folder holds. Reads JSON only.

    Raises CheckpointError naming the file, module or setting that is missing or unknown.
    """
    path = Path(path)
    steps = [(str(step["type"]), path / step["path"]) for step in layout.read_json(path / "modules.json")]
    model = _model_settings(path)
    first = _take(steps, "Transformer")
    if first is None:
        raise CheckpointError(f"{path}/modules.json: expected a Transformer first, got {_names(steps) or 'nothing'}.")
    settings = _transformer_settings(first)
    pooling, pooling_path, include_prompt = _read_pooling(path, steps)
    dense = _take(steps, "Dense")
    if dense is not None:
        _check_dense(dense)
    normalize = _take(steps, "Normalize") is not None
    if steps:
        raise CheckpointError(
            f"{path}/modules.json: {_names(steps)} cannot be read after {pooling} pooling. Known are Transformer, Pooling "
            "(or a first-last WeightedLayerPooling, or latent attention), then at most one Dense, then Normalize."
        )
    return ModelFolder(
        path=path,
        transformer=first,
        pooling=pooling,
        pooling_path=pooling_path,
        dense=dense,
        normalize=normalize,
        prompts={name: prompt or "" for name, prompt in model.get("prompts", {}).items()},
        pool_prompt=include_prompt,
        max_query_length=settings.get("query_length") or settings.get("max_seq_length"),
        max_document_length=settings.get("document_length") or settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case")),
        similarity=model.get("similarity_fn_name") or "cosine",
    )


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


def _take(steps: list[tuple[str, Path]], name: str) -> Path | None:
    """The folder of the next module if it is a `name` of sentence-transformers, taken off the list."""
    if steps and steps[0][0].startswith("sentence_transformers.") and steps[0][0].rsplit(".", 1)[-1] == name:
        return steps.pop(0)[1]
    return None


def _names(steps: list[tuple[str, Path]]) -> str:
    return ", ".join(kind for kind, _ in steps)


def _model_settings(path: Path) -> dict[str, Any]:
    file = path / "config_sentence_transformers.json"
    settings = layout.read_json(file) if file.exists() else {}
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise CheckpointError(
            f"{file}: model_type is {kind}; only SentenceTransformer (one dense vector per text) can be read."
        )
    if settings.get("truncate_dim") is not None:
        raise CheckpointError(
            f"{file}: truncate_dim is {settings['truncate_dim']}; set it to null and cut the embeddings yourself."
        )
    prompts = settings.get("prompts", {})
    default = settings.get("default_prompt_name")
    unused = [
        name
        for name in prompts
        if prompts[name] and name in ("passage", "corpus", default) and name not in ("query", "document")
    ]
    if unused:
        log.warning(
            "%s: prompts %s are not put before queries or documents, which take `query` and `document`. "
            "Set prompts.query and prompts.document if they should be.",
            *(file, ", ".join(unused)),
        )
    return settings


def _transformer_settings(path: Path) -> dict[str, Any]:
    if (path / "adapter_config.json").exists():
        raise CheckpointError(
            f"{path} holds an adapter without its base model. Merge the adapter first, or name the base model."
        )
    file = path / "sentence_bert_config.json"
    settings = layout.read_json(file) if file.exists() else {}
    task = settings.get("transformer_task", "feature-extraction")
    text = settings.get("modality_config", {}).get(
        "text", {"method": "forward", "method_output_name": "last_hidden_state"}
    )
    if (
        task != "feature-extraction"
        or text.get("method") != "forward"
        or text.get("method_output_name") != "last_hidden_state"
    ):
        raise CheckpointError(
            f"{file}: only the last hidden states of a feature-extraction model can be read, not {task} {text}."
        )
    return settings


def _read_pooling(path: Path, steps: list[tuple[str, Path]]) -> tuple[str, Path, bool]:
    """(pooling, its folder, whether prompts are pooled); takes the modules off the list."""
    if steps and steps[0][0] == layout.LATENT_ATTENTION:
        folder = steps.pop(0)[1]
        return "latent_attention", folder, bool(layout.read_json(folder / "config.json")["include_prompt"])
    layers = _take(steps, "WeightedLayerPooling")
    pooling = _take(steps, "Pooling")
    if pooling is None:
        raise CheckpointError(
            f"{path}/modules.json: expected a Pooling after the Transformer, got {_names(steps) or 'nothing'}."
        )
    config = layout.read_json(pooling / "config.json")
    modes = layout.pooling_modes(config)
    if len(modes) != 1 or modes[0] not in MODES:
        raise CheckpointError(
            f"{pooling}/config.json: pooling {' + '.join(modes)} cannot be read. Known: {', '.join(MODES)}, one at a time."
        )
    include_prompt = bool(config.get("include_prompt", True))
    if modes[0] == "cls" and not include_prompt:
        raise CheckpointError(
            f"{pooling}/config.json: cls with include_prompt false reads the token behind the prompt; ours the first."
        )
    if layers is not None:
        _check_first_last(layers, modes[0])
        return "first_last", layers, include_prompt
    return modes[0], pooling, include_prompt


def _check_first_last(folder: Path, mode: str) -> None:
    start = layout.read_json(folder / "config.json").get("layer_start", 4)
    weights = torch.cat([torch.zeros(start), _weights(folder)["layer_weights"].float()])
    expected = torch.zeros_like(weights)
    expected[1] += 1
    expected[-1] += 1
    if mode != "mean" or not torch.equal(weights / weights.max(), expected / expected.max()):
        raise CheckpointError(
            f"{folder}: WeightedLayerPooling can be read as the mean over the first and the last layer only, not with weights "
            f"{weights.tolist()} and {mode} pooling."
        )


def _check_dense(folder: Path) -> None:
    config = layout.read_json(folder / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation != layout.IDENTITY:
        raise CheckpointError(
            f"{folder}/config.json: a Dense with {activation} cannot be read; a projection here is linear."
        )
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise CheckpointError(f"{folder}/config.json: a Dense with a residual, or on tokens, cannot be read.")


def _pooling(model: ModelFolder) -> nn.Module:
    if model.pooling == "first_last":
        return FirstLastPooling()
    if model.pooling == "latent_attention":
        config = layout.read_json(model.pooling_path / "config.json")
        config.pop("include_prompt")
        pooling = LatentAttentionPooling(**config)
        pooling.load_state_dict(_weights(model.pooling_path))
        return pooling
    return MODES[model.pooling]()


def _text_tokenizer(model: ModelFolder, backbone: TransformerBackbone) -> TextTokenizer:
    tokenizer = backbone.tokenizer()
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
            pool_prompt=model.pool_prompt,
        ),
        max_query_length=model.max_query_length or longest,
        max_document_length=model.max_document_length or longest,
        append_eos=model.pooling == "lasttoken" and any(ends_with(tokenizer, token) for token in closing),
    )


def _lower(tokenizer: PreTrainedTokenizerBase) -> None:
    backend = tokenizer.backend_tokenizer
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def _load_projection(projection: nn.Linear, folder: Path) -> None:
    weights = _weights(folder)
    with torch.no_grad():
        projection.weight.copy_(weights["linear.weight"])
        projection.bias.copy_(weights.get("linear.bias", torch.zeros_like(projection.bias)))


def _weights(folder: Path) -> dict[str, Tensor]:
    file = folder / "model.safetensors"
    if not file.exists():
        raise CheckpointError(
            f"{file} is missing. Weights in other formats (pytorch_model.bin) are pickles and are not read."
        )
    return load_file(file)
