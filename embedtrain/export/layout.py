"""The files of a sentence-transformers folder, in the form that current and older versions read.

    config.json model.safetensors tokenizer*.json      a transformers model, at the root: module 0
    modules.json                                       the modules in order, each with its class and its folder
    sentence_bert_config.json                          longest input, in tokens
    config_sentence_transformers.json                  prompts, similarity
    1_Pooling/config.json                              how tokens become one vector
    2_Dense/{config.json,model.safetensors}            projection, where there is one
    3_Normalize/                                       unit length, where it is wanted

The class names and the pooling keys written are those of version 2 to 5; version 6 renamed both and reads the old ones.
Both forms are read. Folders of this layout gave equal embeddings in versions 2.7, 3.4, 5.1 and 6.2 (with transformers
4.41, 4.49, 4.56 and 5.23), with two limits: a Dense, first-last pooling and shipped code need version 3, and bidirectional
decoders need transformers 5.2.

Two other kinds of model have other modules between the transformer and the end, and need version 6:

    MultiVectorEncoder   Dense and Normalize on tokens, MultiVectorMask       multi_vector.py
    SparseEncoder        a language model as transformer, SpladePooling       sparse.py

What no kind of sentence-transformers computes lies in embedtrain/, which only embedtrain reads: views.py.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from embedtrain.errors import CheckpointError

# Classes of sentence-transformers: one dense vector per text, one per token, weights over the vocabulary.
Kind = Literal["SentenceTransformer", "MultiVectorEncoder", "SparseEncoder"]
KINDS: tuple[Kind, ...] = ("SentenceTransformer", "MultiVectorEncoder", "SparseEncoder")

TRANSFORMER = "sentence_transformers.models.Transformer"
POOLING = "sentence_transformers.models.Pooling"
DENSE = "sentence_transformers.models.Dense"
WEIGHTED_LAYERS = "sentence_transformers.models.WeightedLayerPooling"
NORMALIZE = "sentence_transformers.models.Normalize"
MASK = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
SPLADE = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"
# A head that sentence-transformers lacks; its file travels with the model.
LATENT_ATTENTION_FILE = "modeling_latent_attention.py"
LATENT_ATTENTION = "modeling_latent_attention.LatentAttentionPooling"
# A Transformer that reads texts behind a context; its file too.
CONTEXTUAL_FILE = "modeling_contextual.py"
CONTEXTUAL = "modeling_contextual.ContextualTransformer"
# A second model behind the Transformer; its file too.
BRIDGE_FILE = "modeling_bridge.py"
BRIDGE = "modeling_bridge.Bridge"

IDENTITY = "torch.nn.modules.linear.Identity"
RELU = "torch.nn.modules.activation.ReLU"

# Pooling mode of version 6 -> key of the versions before.
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def pooling_config(mode: str, *, hidden_size: int, include_prompt: bool) -> dict[str, Any]:
    return {
        "word_embedding_dimension": hidden_size,
        **{key: name == mode for name, key in POOLING_KEYS.items()},
        "include_prompt": include_prompt,
    }


def pooling_modes(config: dict[str, Any]) -> list[str]:
    """The modes that a pooling config of either form switches on."""
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    modes = [name for name, key in POOLING_KEYS.items() if config.get(key)]
    return modes or ["mean"]  # what sentence-transformers does when nothing is switched on


def model_config(kind: Kind, prompts: dict[str, str], similarity: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "__version__": {"embedtrain": version("embedtrain"), "transformers": version("transformers")},
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": similarity,
    }


def code_beside(folder: Path) -> list[str]:
    """The files in `folder` that hold the code of its transformer, where transformers has no such model: `alibi_bert.py`."""
    named = read_json(folder / "config.json").get("auto_map", {}).values()
    files = {f"{str(name).partition('.')[0]}.py" for name in named}
    return sorted(file for file in files if (folder / file).is_file())


def modules(types: list[tuple[str, str]], bridge: str | None = None) -> list[dict[str, Any]]:
    """modules.json from (class, folder name without its number); module 0 lives at the root.

    bridge: folder of the module between the first and the others, which keep the numbers of their folders.
    """
    steps = [(kind, f"{i}_{name}" if name else "") for i, (kind, name) in enumerate(types)]
    if bridge is not None:
        steps.insert(1, (BRIDGE, bridge))
    return [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(steps)]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises CheckpointError when the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: {path.parent} is not a complete sentence-transformers folder."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
