"""Bodies whose code is their own: nomic_bert of contrastors and the "new" architecture of GTE, by published keys and formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.types import RaggedTokens
from tests.export.published.folders import (
    copy_tokenizer,
    edit_json,
    random_tensors,
    tiny_body,
    write_json,
    write_weights,
)
from tests.export.published.reference import layer_norm
from tests.helpers.models import minilm_dir

HIDDEN, LAYERS, HEADS, INNER, WORDS = 32, 2, 4, 24, 128
D = HIDDEN // HEADS

NOMIC = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "auto_map": {"AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig"},
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "causal": False,
    "embd_pdrop": 0.0,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_layer": LAYERS,
    "n_positions": 8192,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": WORDS - 6,
}
GTE = {
    "model_type": "new",
    "architectures": ["NewModel"],
    "auto_map": {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"},
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pack_qkv": True,
    "pad_token_id": 0,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20000,
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    "vocab_size": WORDS,
}


def nomic_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "emb_ln.weight": (HIDDEN,),
        "emb_ln.bias": (HIDDEN,),
    }
    for n in range(LAYERS):
        layer = f"encoder.layers.{n}."
        shapes |= {
            f"{layer}attn.Wqkv.weight": (3 * HIDDEN, HIDDEN),
            f"{layer}attn.out_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}mlp.fc11.weight": (INNER, HIDDEN),
            f"{layer}mlp.fc12.weight": (INNER, HIDDEN),
            f"{layer}mlp.fc2.weight": (HIDDEN, INNER),
            **{f"{layer}norm{i}.{part}": (HIDDEN,) for i in (1, 2) for part in ("weight", "bias")},
        }
    return shapes


def gte_shapes(prefix: str = "", types: int = 1) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        f"{prefix}embeddings.LayerNorm.weight": (HIDDEN,),
        f"{prefix}embeddings.LayerNorm.bias": (HIDDEN,),
    }
    if types:
        shapes[f"{prefix}embeddings.token_type_embeddings.weight"] = (types, HIDDEN)
    for n in range(LAYERS):
        layer = f"{prefix}encoder.layer.{n}."
        shapes |= {
            f"{layer}attention.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
            f"{layer}attention.qkv_proj.bias": (3 * HIDDEN,),
            f"{layer}attention.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}attention.o_proj.bias": (HIDDEN,),
            f"{layer}mlp.up_gate_proj.weight": (2 * INNER, HIDDEN),
            f"{layer}mlp.down_proj.weight": (HIDDEN, INNER),
            f"{layer}mlp.down_proj.bias": (HIDDEN,),
            **{f"{layer}{norm}.{part}": (HIDDEN,) for norm in ("attn_ln", "mlp_ln") for part in ("weight", "bias")},
        }
    return shapes


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """Halves of a head [T, d], turned by position times frequency."""
    turned = []
    for position, row in enumerate(x):
        angles = position * frequencies
        a, b = row.chunk(2)
        turned.append(torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()]))
    return torch.stack(turned)


def attention(qkv: Tensor, frequencies: Tensor) -> Tensor:
    """[T, 3H] -> [T, H], every token sees every token."""
    heads = []
    for h in range(HEADS):
        q, k, v = (part[:, h * D : (h + 1) * D] for part in qkv.chunk(3, dim=1))
        scores = rotate(q, frequencies) @ rotate(k, frequencies).T / D**0.5
        heads.append(scores.softmax(1) @ v)
    return torch.cat(heads, dim=1)


def normed(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.stack([layer_norm(r, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-12) for r in x])


def nomic(tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    frequencies = 1000.0 ** (-torch.arange(0, D, 2) / D)
    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = normed(tensors, "emb_ln", x)
    for n in range(LAYERS):
        w = {name.removeprefix(f"encoder.layers.{n}."): tensor for name, tensor in tensors.items()}
        made = attention(x @ w["attn.Wqkv.weight"].T, frequencies) @ w["attn.out_proj.weight"].T
        x = normed(w, "norm1", made + x)
        made = (x @ w["mlp.fc11.weight"].T * F.silu(x @ w["mlp.fc12.weight"].T)) @ w["mlp.fc2.weight"].T
        x = normed(w, "norm2", made + x)
    return x


def gte(tensors: dict[str, Tensor], ids: list[int], *, factor: float = 8.0) -> Tensor:
    frequencies = (20000.0 * factor) ** (-torch.arange(0, D, 2) / D) * factor ** (-2 / D)
    x = tensors["embeddings.word_embeddings.weight"][ids]
    if "embeddings.token_type_embeddings.weight" in tensors:
        x = x + tensors["embeddings.token_type_embeddings.weight"][0]
    x = normed(tensors, "embeddings.LayerNorm", x)
    for n in range(LAYERS):
        w = {name.removeprefix(f"encoder.layer.{n}."): tensor for name, tensor in tensors.items()}
        made = attention(x @ w["attention.qkv_proj.weight"].T + w["attention.qkv_proj.bias"], frequencies)
        x = normed(w, "attn_ln", made @ w["attention.o_proj.weight"].T + w["attention.o_proj.bias"] + x)
        up, gate = (x @ w["mlp.up_gate_proj.weight"].T).chunk(2, dim=1)
        x = normed(w, "mlp_ln", (up * F.gelu(gate)) @ w["mlp.down_proj.weight"].T + w["mlp.down_proj.bias"] + x)
    return x


def write(folder: Path, config: dict, tensors: dict[str, Tensor]) -> str:
    write_json(folder / "config.json", config)
    write_weights(tensors, folder)
    copy_tokenizer(minilm_dir(), folder)
    return str(folder)


TEXTS = [[5, 17, 99, 3], [7], [101, 2, 2, 64, 30, 11, 90]]
BODIES = {
    "nomic": (NOMIC, nomic_shapes(), nomic),
    "gte": (GTE, gte_shapes(), gte),
    "gte without types and scaling": (
        GTE | {"rope_scaling": None, "type_vocab_size": 0},
        gte_shapes(types=0),
        lambda tensors, ids: gte(tensors, ids, factor=1.0),
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_states_are_those_of_the_published_formula(name, tmp_path):
    config, shapes, formula = BODIES[name]
    tensors = random_tensors(shapes)
    backbone = TransformerBackbone(name=write(tmp_path / "model", config, tensors)).eval()
    assert backbone.direction == "bidirectional"
    assert backbone.kernel == "ragged"
    with torch.no_grad():
        found = backbone(RaggedTokens.from_lists(TEXTS))
    expected = torch.cat([formula(tensors, ids) for ids in TEXTS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert backbone.config.max_position_embeddings == 8192


def test_gte_inside_another_model_is_found_by_its_prefix(tmp_path):
    """gte-multilingual-base: everything under `new.`, with a classifier for sparse weights beside it."""
    tensors = random_tensors(gte_shapes("new."))
    beside = {"classifier.weight": torch.ones(1, HIDDEN), "classifier.bias": torch.ones(1)}
    backbone = TransformerBackbone(name=write(tmp_path / "model", GTE, tensors | beside)).eval()
    with torch.no_grad():
        found = backbone(RaggedTokens.from_lists(TEXTS[:1]))
    bare = {name.removeprefix("new."): tensor for name, tensor in tensors.items()}
    torch.testing.assert_close(found, gte(bare, TEXTS[0]), rtol=1e-4, atol=1e-4)


REFUSED = {
    r"config\.json of nomic_bert has \{'prenorm': True\}": (NOMIC | {"prenorm": True}, nomic_shapes()),
    r"config\.json of nomic_bert has \{'num_experts': 8\}": (NOMIC | {"num_experts": 8}, nomic_shapes()),
    r"config\.json of new \(GTE\) has \{'layer_norm_type': 'rms_norm'\}": (
        GTE | {"layer_norm_type": "rms_norm"},
        gte_shapes(),
    ),
    r"rope_scaling is \{'factor': 8\.0, 'type': 'dynamic'\}": (
        GTE | {"rope_scaling": {"factor": 8.0, "type": "dynamic"}},
        gte_shapes(),
    ),
    r"not the weights of nomic_bert\. Missing: .*layers\.0\.self_attn\..*Unexpected: .*wq\.weight": (
        NOMIC,
        {k.replace("layers.0.attn.Wqkv", "layers.0.attn.wq"): v for k, v in nomic_shapes().items()},
    ),
    r"not the weights of new \(GTE\)\. Shapes: .*down_proj\.bias \[5\], expected \[32\]": (
        GTE,
        gte_shapes() | {"encoder.layer.1.mlp.down_proj.bias": (5,)},
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_transformers_cannot_express_or_find_is_named(message, tmp_path):
    config, shapes = REFUSED[message]
    with pytest.raises(CheckpointError, match=message):
        TransformerBackbone(name=write(tmp_path / "model", config, random_tensors(shapes)))


def test_beyond_the_trained_positions_a_scaled_nomic_does_not_go(tmp_path):
    folder = write(tmp_path / "model", NOMIC | {"rotary_scaling_factor": 2}, random_tensors(nomic_shapes()))
    assert TransformerBackbone(name=folder).config.max_position_embeddings == 2048


def test_a_type_that_only_its_own_code_knows_is_refused_and_not_run(tmp_path):
    folder = Path(write(tmp_path / "model", GTE, random_tensors(gte_shapes())))
    (folder / "modeling.py").write_text("raise SystemExit('remote code was run')")
    edit_json(folder / "config.json", model_type="contextual", auto_map={"AutoModel": "modeling.ContextualModel"})
    with pytest.raises(
        ConfigError, match=r"of the type 'contextual', which only code .* \(modeling\.ContextualModel\)"
    ):
        TransformerBackbone(name=str(folder))


def test_code_beside_a_model_of_transformers_is_not_run_and_said(tmp_path, caplog):
    folder = tmp_path / "model"
    config = json.loads((Path(minilm_dir()) / "config.json").read_text())
    write_json(folder / "config.json", config | {"auto_map": {"AutoModel": "modeling.MyBert"}})
    copy_tokenizer(minilm_dir(), folder)
    with torch.device("meta"):
        TransformerBackbone(name=str(folder), weights="random")
    assert "names code of its own (modeling.MyBert), which is not run" in caplog.text


def test_a_model_that_only_calls_itself_as_one_of_transformers_is_refused(tmp_path):
    """jina-embeddings-v2 and v3 have the types `bert` and `xlm-roberta`, and other weights."""
    folder, body = tiny_body("bert", tmp_path)
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_bert.JinaBertModel"})
    write_weights({k: x for k, x in body.state_dict().items() if "position_embeddings" not in k}, folder)
    with pytest.raises(CheckpointError, match=r"another model than transformers' bert.*Missing: .*position_embeddings"):
        TransformerBackbone(name=str(folder))
