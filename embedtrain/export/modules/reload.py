"""Embed texts with an exported folder, in a process of its own.

    python reload.py FOLDER TEXTS.json EMBEDDINGS.npz (sentence-transformers | embedtrain)

TEXTS.json: a list of texts. EMBEDDINGS.npz: `query` and `document`, each [N, E] float32. With `sentence-transformers`, the
program imports nothing of embedtrain: it sees what any user of the folder sees.
"""

import json
import sys

import numpy as np


def with_sentence_transformers(folder, texts):
    import torch
    from sentence_transformers import SentenceTransformer

    with open(f"{folder}/modules.json", encoding="utf-8") as file:
        ships_code = any(module["type"].startswith("modeling_") for module in json.load(file))
    # Full precision whatever the stored weights are: the folder is compared, not the rounding of one kernel.
    model = SentenceTransformer(
        folder, device="cpu", trust_remote_code=ships_code, model_kwargs={"dtype": torch.float32}
    )
    return {
        "query": model.encode_query(texts, convert_to_numpy=True, show_progress_bar=False),
        "document": model.encode_document(texts, convert_to_numpy=True, show_progress_bar=False),
    }


def with_embedtrain(folder, texts):
    from embedtrain.export.load import load_encoder

    encoder = load_encoder(folder)
    return {role: encoder.encode(texts, role=role).numpy() for role in ("query", "document")}


if __name__ == "__main__":
    folder, texts_path, out_path, library = sys.argv[1:]
    with open(texts_path, encoding="utf-8") as file:
        texts = json.load(file)
    embed = {"sentence-transformers": with_sentence_transformers, "embedtrain": with_embedtrain}[library]
    np.savez(out_path, **embed(folder, texts))
