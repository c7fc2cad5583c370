"""Published models whose folders say more, or say it otherwise, than plain sentence-transformers folders do.

A reader, one file for each layout, recognises the folder by its files and configs, never by its name, and says in the words of
`folder.py` what is there, with the weights of heads under our names. No code of a folder is run. A key that is missing, that
nobody knows or whose shape is another is an error that names it.

nv_embed.py                 latent attention behind a bidirectional Mistral
bge_m3.py                   sparse weights and token vectors beside the dense embedding, as views
colbert.py                  ColBERT's own checkpoints: a linear layer beside the body, artifact.metadata
pylate.py                   ColBERT as PyLate stores it
pooling_and_attention.py    trainable pooling beside a LoRA adapter
weights.py                  their files

What needs no reader of its own is read by `folder.py`: several Dense in a row (EmbeddingGemma), one of several Dense (Stella),
`truncate_dim`, SPLADE; bodies (NV-Embed, nomic_bert, GTE, adapters) by `embedtrain.backbones.published`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embedtrain.errors import CheckpointError
from embedtrain.export.folder import ModelFolder, read_model_folder
from embedtrain.export.published import bge_m3, colbert, nv_embed, pooling_and_attention, pylate

__all__ = ["LAYOUTS", "describe"]

LAYOUTS: dict[str, Callable[[Path], ModelFolder | None]] = {
    "NV-Embed": nv_embed.read,
    "ColBERT": colbert.read,
    "PyLate": pylate.read,
    "Pooling and Attention": pooling_and_attention.read,
    "BGE-M3": bge_m3.read,
}


def describe(path: Path) -> ModelFolder:
    """What a model folder of any known layout holds.

    Raises CheckpointError for one that says too little, or something unknown.
    """
    for read in LAYOUTS.values():
        found = read(path)
        if found is not None:
            return found
    plain = any((path / name).exists() for name in ("config.json", "adapter_config.json"))
    if plain and not (path / "modules.json").exists():
        raise CheckpointError(
            f"{path}: modules.json is missing, and it is no layout that is known without ({', '.join(LAYOUTS)}). A model of "
            "transformers alone does not say how its tokens become a vector. A run says it: "
            f"backbone.name={path} pooling=mean, or cls, eos, splade, ..."
        )
    return read_model_folder(path)
