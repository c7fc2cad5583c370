"""Contextual document embeddings (arXiv:2410.02525), for sentence-transformers 5 and newer.

This file travels with the model, since sentence-transformers has no such module. It is a Transformer that reads each text behind
the vectors of other documents. Some lie in the folder. Those of your own corpus are better:

    model = SentenceTransformer(folder, trust_remote_code=True)
    model[0].set_context(documents)    # a sample is taken; without a prompt, which is put before each here
"""

import json
import os

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.models import Transformer
from torch import nn
from transformers import AutoModel

CONFIG, FIRST = "context_config.json", "context_encoder"
LAYERS, VECTORS = (
    os.path.join("context_layers", "model.safetensors"),
    os.path.join("context_layers", "context.safetensors"),
)


class ContextualTransformer(Transformer):
    """Token ids of texts -> states of their tokens, as a Transformer gives them; what stands in front of a text has none."""

    def forward(self, features, **kwargs):
        ids, mask = features["input_ids"], features["attention_mask"]
        words = self.auto_model.get_input_embeddings()(ids)
        front = self.context["front"].to(words).expand(len(ids), -1, -1)
        documents, width = self.settings["num_context"], front.shape[1]
        first = self.settings["first_position"]
        after = first + self.settings["text_at"]
        places = torch.arange(width, device=ids.device) - documents + after
        places[:documents] = first
        text = mask.cumsum(dim=1) - 1 + after + width - documents  # wherever the padding is
        states = self.auto_model(
            inputs_embeds=torch.cat([front, words], dim=1),
            attention_mask=torch.cat([mask.new_ones(len(ids), width), mask], dim=1),
            position_ids=torch.cat([places.expand(len(ids), -1), text.clamp(min=first)], dim=1),
        ).last_hidden_state
        features["token_embeddings"] = states[:, width:]
        return features

    @torch.no_grad()
    def set_context(self, documents, batch_size=32):
        """From now on texts are read behind a sample of these documents, or behind none (None)."""
        if not documents:
            self._take(self.weights["null"].expand(self.settings["num_context"], -1))
            return
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
        wanted = self.settings["num_context"]
        chosen = order.repeat(-(-wanted // len(documents)))[:wanted].tolist()
        encoder = AutoModel.from_pretrained(self.first_encoder).eval().to(self.auto_model.device)
        numbers = sorted(set(chosen))
        found = []
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            texts = [self.settings["document_prompt"] + documents[number] for number in part]
            read = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt"
            ).to(encoder.device)
            mask = read["attention_mask"].unsqueeze(-1)
            states = encoder(
                input_ids=read["input_ids"], attention_mask=read["attention_mask"]
            ).last_hidden_state.float()
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            found.append(self._layers("to_context", nn.GELU(), means.cpu()))
        self._take(torch.cat(found)[[numbers.index(number) for number in chosen]])

    def _layers(self, name, between, vectors):
        weights = [self.weights[f"{name}.{layer}.{kind}"] for layer in (0, 2) for kind in ("weight", "bias")]
        return nn.functional.linear(between(nn.functional.linear(vectors, *weights[:2])), *weights[2:])

    def _take(self, vectors):
        """Vectors of the context, and the learned ones between them and the text."""
        self.vectors = vectors.contiguous()
        parts = [vectors]
        if self.settings["num_prompts"]:
            prompts = self._layers("to_prompts", nn.ReLU(), torch.ones(vectors.shape[1]))
            parts.append(prompts.view(self.settings["num_prompts"], -1))
        front = nn.Parameter(torch.cat(parts), requires_grad=False)
        self.context = nn.ParameterDict({"front": front.to(self.auto_model.device)})

    def _read(self, folder):
        with open(os.path.join(folder, CONFIG), encoding="utf-8") as file:
            self.settings = json.load(file)
        self.weights = load_file(os.path.join(folder, LAYERS))
        self.first_encoder = os.path.join(folder, FIRST)
        self.unpad_inputs = False  # states of texts are told from the context's by their places
        vectors = os.path.join(folder, VECTORS)
        nothing = self.weights["null"].expand(self.settings["num_context"], -1)
        self._take(load_file(vectors)["context"] if os.path.isfile(vectors) else nothing)

    def save(self, output_path, *args, **kwargs):
        super().save(output_path, *args, **kwargs)
        with open(os.path.join(output_path, CONFIG), "w", encoding="utf-8") as file:
            json.dump(self.settings, file, indent=2)
        os.makedirs(os.path.dirname(os.path.join(output_path, LAYERS)), exist_ok=True)
        save_file(self.weights, os.path.join(output_path, LAYERS), metadata={"format": "pt"})
        save_file({"context": self.vectors}, os.path.join(output_path, VECTORS), metadata={"format": "pt"})
        AutoModel.from_pretrained(self.first_encoder).save_pretrained(os.path.join(output_path, FIRST))

    @classmethod
    def load(cls, model_name_or_path, subfolder="", **kwargs):
        module = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        where = {name: kwargs.get(name) for name in ("token", "cache_folder", "revision")}
        only = kwargs.get("local_files_only", False)
        module._read(cls.load_dir_path(model_name_or_path, subfolder=subfolder, local_files_only=only, **where))
        return module
