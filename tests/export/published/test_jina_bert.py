"""jina-embeddings-v2: published names of keys against the published formula, far beyond the trained length, and out again."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embedtrain.backbones.alibi_bert import AlibiBertConfig, AlibiBertForMaskedLM, AlibiBertModel, alibi_slopes
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import CheckpointError
from embedtrain.export.load import load_encoder
from embedtrain.export.sentence_transformers import export
from embedtrain.pinned import pinned
from embedtrain.types import RaggedTokens
from tests.export.published.folders import copy_tokenizer, edit_json, random_tensors, write_json, write_weights
from tests.export.published.reference import layer_norm
from tests.helpers.models import minilm_dir

WORDS, HIDDEN, LAYERS, HEADS, INNER = 128, 24, 2, 6, 40
D = HIDDEN // HEADS
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["JinaBertForMaskedLM"],
    "auto_map": {
        "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
        "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
    },
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "torch",
    "classifier_dropout": None,
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 8192,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "position_embedding_type": "alibi",
    "type_vocab_size": 2,
    "vocab_size": WORDS,
}


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **{f"embeddings.LayerNorm.{part}": (HIDDEN,) for part in ("weight", "bias")},
        "pooler.dense.weight": (HIDDEN, HIDDEN),
        "pooler.dense.bias": (HIDDEN,),
    }
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= {f"{layer}{name}.weight": (HIDDEN, HIDDEN), f"{layer}{name}.bias": (HIDDEN,)}
        found |= {
            f"{layer}mlp.gated_layers.weight": (2 * INNER, HIDDEN),
            f"{layer}mlp.wo.weight": (HIDDEN, INNER),
            f"{layer}mlp.wo.bias": (HIDDEN,),
        }
        for name in ("attention.output.LayerNorm", "mlp.layernorm"):
            found |= {f"{layer}{name}.weight": (HIDDEN,), f"{layer}{name}.bias": (HIDDEN,)}
    return found


# Six heads: those of four (2^-2, 2^-4, 2^-6, 2^-8), then the first and third of eight.
SLOPES = (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)


def attention(w: dict[str, Tensor], x: Tensor) -> Tensor:
    q, k, v = (x @ w[f"attention.self.{n}.weight"].T + w[f"attention.self.{n}.bias"] for n in ("query", "key", "value"))
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(HEADS):
            part = slice(h * D, (h + 1) * D)
            scores = [float(q[i, part] @ k[j, part]) / math.sqrt(D) - SLOPES[h] * abs(i - j) for j in range(len(x))]
            heads.append(torch.tensor(scores).softmax(0) @ v[:, part])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def normed(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.stack([layer_norm(row, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12) for row in x])


def formula(tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """JinaBERT, one token at a time."""
    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = normed(tensors, "embeddings.LayerNorm", x)
    for n in range(LAYERS):
        w = {name.removeprefix(f"encoder.layer.{n}."): tensor for name, tensor in tensors.items()}
        made = attention(w, x) @ w["attention.output.dense.weight"].T + w["attention.output.dense.bias"]
        x = normed(w, "attention.output.LayerNorm", made + x)
        gated, plain = (x @ w["mlp.gated_layers.weight"].T).split(INNER, dim=1)
        made = (F.gelu(gated) * plain) @ w["mlp.wo.weight"].T + w["mlp.wo.bias"]
        x = normed(w, "mlp.layernorm", made + x)
    return x


def write(folder: Path, tensors: dict[str, Tensor], **changes: object) -> Path:
    write_json(folder / "config.json", CONFIG | changes)
    write_weights(tensors, folder)
    copy_tokenizer(minilm_dir(), folder)
    return folder


TEXTS = [[5, 17, 99, 3], [7], [101, 2, 2, 64, 30, 11, 90], [(7 * i) % WORDS for i in range(33)]]


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_states_are_those_of_the_published_formula(kernel, tmp_path):
    tensors = random_tensors(shapes())
    backbone = TransformerBackbone(name=str(write(tmp_path / "model", tensors)), kernel=kernel).eval()
    assert (backbone.kernel, backbone.direction, backbone.longest_text) == (kernel, "bidirectional", None)
    with torch.no_grad():
        found = backbone(RaggedTokens.from_lists(TEXTS))
    torch.testing.assert_close(found, torch.cat([formula(tensors, ids) for ids in TEXTS]), rtol=1e-4, atol=1e-4)


def test_keys_of_a_whole_language_model_are_found_under_its_prefix(tmp_path):
    tensors = random_tensors(shapes())
    beside = {"cls.predictions.bias": torch.ones(WORDS)}
    folder = write(tmp_path / "model", {f"bert.{name}": x for name, x in tensors.items()} | beside)
    backbone = TransformerBackbone(name=str(folder)).eval()
    with torch.no_grad():
        found = backbone(RaggedTokens.from_lists(TEXTS[:1]))
    torch.testing.assert_close(found, formula(tensors, TEXTS[0]), rtol=1e-4, atol=1e-4)


def test_slopes_are_those_of_alibi():
    assert alibi_slopes(8) == tuple(2.0**-h for h in range(1, 9))
    assert alibi_slopes(6) == SLOPES
    assert alibi_slopes(12)[8:] == tuple(2.0 ** -(h + 0.5) for h in range(4))


@pytest.mark.parametrize(("size", "published"), [("base", 137e6), ("small", 33e6)])
def test_parameters_are_as_many_as_published(size, published):
    known = pinned(f"jinaai/jina-embeddings-v2-{size}-en")
    assert known is not None
    with torch.device("meta"):
        model = AlibiBertModel(known.transformers_config())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.02)


def test_a_text_of_any_length_is_read_and_both_paths_agree(tmp_path):
    """2,048 tokens where nothing in the weights has a length; the states near an end hardly see the other end."""
    folder = str(write(tmp_path / "model", random_tensors(shapes())))
    long = [(31 * i + 7) % WORDS for i in range(2048)]
    paths = [TransformerBackbone(name=folder, kernel=kernel).eval() for kernel in ("ragged", "padded")]
    with torch.no_grad():
        ragged, padded = (path(RaggedTokens.from_lists([long])) for path in paths)
        short = paths[0](RaggedTokens.from_lists([long[:512]]))
    torch.testing.assert_close(ragged, padded, rtol=1e-4, atol=1e-4)
    near, far = (ragged[:512] - short).abs().amax(1)[[0, 511]].tolist()
    assert near < far


def test_the_exported_folder_ships_the_code_and_loads_without_ours(tmp_path):
    write_json(
        (folder := write(tmp_path / "model", random_tensors(shapes()))) / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 1024})
    edit_json(folder / "config.json", vocab_size=30522)
    write_weights(random_tensors(shapes() | {"embeddings.word_embeddings.weight": (30522, HIDDEN)}), folder)
    encoder = load_encoder(folder)
    text = " ".join(["a sentence longer than any in training"] * 100)
    report = export(encoder, tmp_path / "out", probes=[text])  # compared in a fresh process
    assert report.verified_with.startswith("sentence-transformers ")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "alibi_bert"
    assert config["auto_map"] == {"AutoConfig": "alibi_bert.AlibiBertConfig", "AutoModel": "alibi_bert.AlibiBertModel"}
    assert any("trust_remote_code=True" in note for note in report.notes)
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()
    assert "embedtrain" not in imports_of(tmp_path / "out" / "alibi_bert.py")
    again = load_encoder(tmp_path / "out")
    torch.testing.assert_close(again.encode([text]), encoder.encode([text]), rtol=1e-5, atol=1e-5)


def imports_of(module: Path) -> str:
    """What a fresh process has loaded once it has run the file."""
    code = f"import runpy, sys; runpy.run_path({str(module)!r}); print(*sys.modules)"
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_language_model_has_the_embeddings_as_its_last_layer():
    sizes: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": INNER}
    model = AlibiBertForMaskedLM(AlibiBertConfig(**sizes, num_hidden_layers=1, num_attention_heads=HEADS))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model(torch.tensor([TEXTS[0]])).logits.shape == (1, 4, WORDS)


REFUSED: dict[str, dict[str, Any]] = {
    r"feed_forward_type is 'original'; known are geglu and reglu": {"feed_forward_type": "original"},
    r"jina-bert-v2-qk-post-norm, which norms queries and keys": {
        "auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}
    },
    r"not the weights of JinaBERT\. Shapes: .*gated_layers\.weight \[80, 24\], expected \[82, 24\]": {
        "intermediate_size": INNER + 1
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_another_model_is_refused_by_name(message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        TransformerBackbone(name=str(write(tmp_path / "model", random_tensors(shapes()), **REFUSED[message])))
