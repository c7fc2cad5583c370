"""Embed texts with an exported folder, in a process of its own.

    python reload.py FOLDER TASK.json EMBEDDINGS.npz (sentence-transformers | embedtrain)

TASK.json: `texts`, and in `prompts` for each role a prompt, or null for the folder's own. EMBEDDINGS.npz: `query` and
`document`, each [N, E] float32. With `sentence-transformers`, the program imports nothing of embedtrain: it sees what any
user of the folder sees.
"""

import json
import sys

import numpy as np


def with_sentence_transformers(folder, texts, prompts):
    import torch
    from sentence_transformers import SentenceTransformer

    with open(f"{folder}/modules.json", encoding="utf-8") as file:
        ships_code = any(module["type"].startswith("modeling_") for module in json.load(file))
    # Full precision whatever the stored weights are: the folder is compared, not the rounding of one kernel.
    model = SentenceTransformer(
        folder, device="cpu", trust_remote_code=ships_code, model_kwargs={"dtype": torch.float32}
    )
    return {
        "query": model.encode_query(texts, prompt=prompts["query"], show_progress_bar=False),
        "document": model.encode_document(texts, prompt=prompts["document"], show_progress_bar=False),
    }


def with_embedtrain(folder, texts, prompts):
    from embedtrain.export.load import load_encoder

    encoder = load_encoder(folder)
    for role, prompt in prompts.items():
        if prompt is not None:
            encoder.tokenizer.prompts.templates[role] = prompt
    return {role: encoder.encode(texts, role=role).numpy() for role in prompts}


if __name__ == "__main__":
    folder, task_path, out_path, library = sys.argv[1:]
    with open(task_path, encoding="utf-8") as file:
        task = json.load(file)
    embed = {"sentence-transformers": with_sentence_transformers, "embedtrain": with_embedtrain}[library]
    np.savez(out_path, **embed(folder, task["texts"], task["prompts"]))
