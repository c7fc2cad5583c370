"""A bridge from an encoder to a language model (LUSIFER, arXiv:2501.00874), for sentence-transformers.

This file travels with the model, since sentence-transformers has no such module; it needs torch, transformers and safetensors.
It stands behind the Transformer that is the encoder: two linear layers turn its states into what the language model reads in
place of words, learned vectors follow each text, and the language model's states at the text's tokens go on to pooling.
"""

import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel


class Bridge(nn.Module):
    """token_embeddings [N, T, H] and attention_mask [N, T], padded on the right -> token_embeddings [N, T, H']."""

    def __init__(self, llm, in_size, learned_tokens):
        super().__init__()
        out_size = llm.config.hidden_size
        self.config = {"in_size": in_size, "learned_tokens": learned_tokens}
        self.inner = nn.Linear(in_size, in_size)
        self.outer = nn.Linear(in_size, out_size)
        self.learned = nn.Parameter(torch.empty(learned_tokens, out_size))
        self.llm = llm

    def forward(self, features, **kwargs):
        states = features["token_embeddings"].to(self.inner.weight.dtype)
        mask = features["attention_mask"].to(torch.bool)
        longest, lengths = mask.shape[1], mask.sum(dim=1)
        extra = self.learned.shape[0]
        vectors = F.pad(self.outer(F.relu(self.inner(states))), (0, 0, 0, extra))
        texts = torch.arange(len(mask), device=mask.device)[:, None]
        behind = lengths[:, None] + torch.arange(extra, device=mask.device)
        vectors = vectors.index_put((texts, behind), self.learned.expand(len(mask), -1, -1))
        visible = torch.arange(longest + extra, device=mask.device) < lengths[:, None] + extra
        all_layers = "all_layer_embeddings" in features
        output = self.llm(
            inputs_embeds=vectors, attention_mask=visible.long(), use_cache=False, output_hidden_states=all_layers
        )
        features["token_embeddings"] = output.last_hidden_state[:, :longest]
        if all_layers:
            features["all_layer_embeddings"] = [layer[:, :longest] for layer in output.hidden_states]
        return features

    def get_embedding_dimension(self):
        return self.outer.out_features

    def get_word_embedding_dimension(self):
        return self.outer.out_features

    def save(self, output_path, *args, **kwargs):
        with open(os.path.join(output_path, "config.json"), "w", encoding="utf-8") as file:
            json.dump(self.config, file, indent=2)
        own = {name: tensor.contiguous() for name, tensor in self.state_dict().items() if not name.startswith("llm.")}
        save_file(own, os.path.join(output_path, "model.safetensors"), metadata={"format": "pt"})
        self.llm.save_pretrained(os.path.join(output_path, "llm"))

    # Versions of sentence-transformers before 5 give the folder alone; later ones the model, the place in it and more.
    @staticmethod
    def load(
        model_name_or_path, subfolder="", token=None, cache_folder=None, revision=None, model_kwargs=None, **kwargs
    ):
        folder = os.path.join(model_name_or_path, subfolder)
        if not os.path.isdir(folder):
            from huggingface_hub import snapshot_download

            wanted = {"revision": revision, "token": token, "cache_dir": cache_folder}
            fetched = snapshot_download(model_name_or_path, allow_patterns=[f"{subfolder}/*"], **wanted)
            folder = os.path.join(fetched, subfolder)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        asked = model_kwargs or {}
        dtype = asked.get("dtype") or asked.get("torch_dtype") or "auto"
        llm = AutoModel.from_pretrained(os.path.join(folder, "llm"), torch_dtype=dtype)
        module = Bridge(llm, **config)
        own = load_file(os.path.join(folder, "model.safetensors"))
        module.load_state_dict(own | {f"llm.{name}": tensor for name, tensor in llm.state_dict().items()})
        return module.to(llm.dtype)
