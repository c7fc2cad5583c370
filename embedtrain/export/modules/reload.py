"""Embed texts with an exported folder, in a process of its own.

    python reload.py FOLDER TASK.json EMBEDDINGS.npz (sentence-transformers | embedtrain)

TASK.json: `texts`, and in `prompts` for each role a prompt with `{text}` in it, or null for the folder's own. EMBEDDINGS.npz:
`query` and `document`, each [N, E] float32; with several vectors per text [S, E], and in `query_counts` and `document_counts`
how many each text has. With `sentence-transformers`, the program imports nothing of embedtrain: it sees what any user of the
folder sees.
"""

import json
import os
import sys

import numpy as np


def with_sentence_transformers(folder, texts, prompts):
    import sentence_transformers
    import torch

    with open(f"{folder}/modules.json", encoding="utf-8") as file:
        ships_code = any(module["type"].startswith("modeling_") for module in json.load(file))
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        models = json.load(file).get("auto_map", {}).values()
    ships_code |= any(os.path.isfile(f"{folder}/{str(name).partition('.')[0]}.py") for name in models)
    with open(f"{folder}/config_sentence_transformers.json", encoding="utf-8") as file:
        kind = json.load(file)["model_type"]
    # Full precision whatever the stored weights are: the folder is compared, not the rounding of one kernel.
    model = getattr(sentence_transformers, kind)(
        folder, device="cpu", trust_remote_code=ships_code, model_kwargs={"dtype": torch.float32}
    )
    found = {}
    for role, encode in (("query", model.encode_query), ("document", model.encode_document)):
        before = prompts[role] and prompts[role].partition("{text}")[0]
        options = {"prompt": before, "show_progress_bar": False}
        if kind == "MultiVectorEncoder":
            vectors = encode(texts, convert_to_numpy=True, **options)
            found[role] = np.concatenate(vectors)
            found[f"{role}_counts"] = np.array([len(one) for one in vectors])
        elif kind == "SparseEncoder":
            found[role] = encode(texts, convert_to_sparse_tensor=False, **options).numpy()
        else:
            found[role] = encode(texts, **options)
    return found


def with_embedtrain(folder, texts, prompts):
    from embedtrain.export.load import load_encoder

    encoder = load_encoder(folder)
    found = {}
    for role, prompt in prompts.items():
        if prompt is not None:
            encoder.tokenizer.prompts.templates[role] = prompt
        embeddings = encoder.encode_embeddings(texts, role=role)
        found[role] = embeddings.values.numpy()
        if embeddings.offsets is not None:
            found[f"{role}_counts"] = embeddings.offsets.diff().numpy()
    return found


if __name__ == "__main__":
    folder, task_path, out_path, library = sys.argv[1:]
    with open(task_path, encoding="utf-8") as file:
        task = json.load(file)
    embed = {"sentence-transformers": with_sentence_transformers, "embedtrain": with_embedtrain}[library]
    np.savez(out_path, **embed(folder, task["texts"], task["prompts"]))
