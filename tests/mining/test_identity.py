"""What the vectors of an encoder depend on, and nothing else, is its identity."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from embedtrain.data.prompts import Prompts
from embedtrain.export.load import load_encoder
from embedtrain.export.sentence_transformers import export
from embedtrain.mining.identity import identity, weights_hash
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.store.manifest import Manifest
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.mining.encoders import encoder_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    where = tmp_path_factory.mktemp("identity")
    return {name: tiny_model_dir(name, where) for name in ("bert", "qwen3")}


def digest(encoder) -> str:
    return Manifest(identity=identity(encoder), dim=encoder.embedding_dim, numbers="float32").digest


def changed(encoder, change) -> str:
    other = copy.deepcopy(encoder)
    change(other)
    return digest(other)


def one_weight(encoder):
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[7] += 1e-6


def in_bfloat16(encoder):
    encoder.backbone.hf_model.encoder.layer[0].output.dense.weight.data = torch.zeros(32, 48, dtype=torch.bfloat16)


def in_float32(encoder):
    encoder.backbone.hf_model.encoder.layer[0].output.dense.weight.data = torch.zeros(32, 48)


def one_word(encoder):
    encoder.tokenizer.hf.add_tokens(["zyx"])


def as_written(encoder):
    content = json.loads(encoder.tokenizer.hf.backend_tokenizer.to_str())
    content["normalizer"]["lowercase"] = False
    backend = type(encoder.tokenizer.hf.backend_tokenizer).from_str(json.dumps(content))
    encoder.tokenizer.hf.backend_tokenizer.normalizer = backend.normalizer


def fewer_heads(encoder):
    encoder.backbone.config.num_attention_heads = 2


CHANGES = {
    "a weight": one_weight,
    "numbers of a weight": in_bfloat16,
    "weight for numbers": in_float32,
    "a word of the vocabulary": one_word,
    "a rule of the tokenizer": as_written,
    "closing ids": lambda e: e.tokenizer.closing_ids.update(query=[7], document=[8]),
    "query augmentation": lambda e: setattr(e.tokenizer, "query_augmentation", 12),
    "masks that no token sees": lambda e: setattr(e.tokenizer, "attend_to_masks", False),
    "length of queries": lambda e: e.tokenizer.max_length.update(query=15),
    "length of documents": lambda e: e.tokenizer.max_length.update(document=25),
    "whether the prompt is pooled": lambda e: setattr(e.tokenizer.prompts, "pool_prompt", False),
    "pooling": lambda e: setattr(e, "pooling", ClsPooling()),
    "other pooling": lambda e: setattr(e, "pooling", MaxPooling()),
    "layer": lambda e: setattr(e, "pooling", LayerAveragePooling(layers=[1], pooling=MeanPooling(), num_layers=2)),
    "layers": lambda e: setattr(e, "pooling", LayerAveragePooling(layers=[1, 2], pooling=MeanPooling(), num_layers=2)),
    "pooling of layers": lambda e: setattr(
        e, "pooling", LayerAveragePooling(layers=[1], pooling=MaxPooling(), num_layers=2)
    ),
    "norm": lambda e: setattr(e, "unit_length", False),
    "projection": lambda e: setattr(e, "projection", torch.nn.Identity()),
    "attention": lambda e: setattr(e.backbone, "direction", "causal"),
    "arithmetic": lambda e: setattr(e, "encode_dtype", torch.bfloat16),
    "the config of the backbone": fewer_heads,
}


def test_whatever_changes_a_vector_changes_the_digest(folders):
    encoder = encoder_of(folders["bert"])
    made = {"as it was": digest(encoder), **{name: changed(encoder, change) for name, change in CHANGES.items()}}
    assert len(set(made.values())) == len(made), {name for name in made if list(made.values()).count(made[name]) > 1}
    assert digest(encoder) == made["as it was"]  # copies were changed


def test_settings_that_no_weight_shows_change_the_digest(folders):
    def latent(heads: int) -> LatentAttentionPooling:
        torch.manual_seed(1)
        return LatentAttentionPooling(hidden_size=32, num_latents=4, num_heads=heads, head_dim=8 // heads, expansion=2)

    one, other = (encoder_of(folders["bert"], pooling=latent(heads)) for heads in (2, 4))
    assert {name: tuple(t.shape) for name, t in one.state_dict().items()} == {
        name: tuple(t.shape) for name, t in other.state_dict().items()
    }
    assert digest(one) != digest(other)
    small, large = (encoder_of(folders["bert"], lora={"r": 2, "alpha": alpha}) for alpha in (2, 4))
    assert identity(small)["weights"] == identity(large)["weights"]
    assert digest(small) != digest(large)


def test_an_end_token_that_changes_the_tokens_changes_the_digest(folders):
    plain, ended = (encoder_of(folders["qwen3"], append_eos=append) for append in (False, True))
    assert digest(plain) != digest(ended)


def test_what_changes_no_vector_leaves_the_digest(folders, tmp_path):
    encoder = encoder_of(folders["bert"])
    before = digest(encoder)
    encoder.encode(["a text of many words " * 9], role="document")  # the tokenizer keeps the last truncation
    assert digest(encoder) == before
    encoder.train()
    assert digest(encoder) == before
    assert digest(encoder_of(folders["bert"], prompts=Prompts(query="other: ", document="d: "))) == before
    assert digest(encoder_of(folders["bert"], dropout=0.5)) == before
    assert digest(encoder_of(folders["bert"], kernel="padded")) == before
    elsewhere = tiny_model_dir("bert", tmp_path / "elsewhere")
    assert digest(encoder_of(elsewhere)) == before
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 2:  # the same numbers in another order of memory
            parameter.data = parameter.data.mT.contiguous().mT
    assert digest(encoder) == before


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("bert", {"projection_dim": 12, "prompts": Prompts(query="find: ", pool_prompt=False)}),
        ("qwen3", {"attention": "bidirectional", "pooling": EosPooling(), "append_eos": True}),
    ],
)
def test_a_model_that_was_saved_and_read_back_keeps_it(folders, tmp_path, architecture, options, monkeypatch):
    from embedtrain.export import verify
    from embedtrain.export.modules.reload import with_sentence_transformers

    monkeypatch.setattr(  # the same check without a new interpreter, which takes seconds
        verify,
        "_embed_in_fresh_process",
        lambda folder, task, library: with_sentence_transformers(str(folder), task["texts"], task["prompts"]),
    )
    encoder = encoder_of(folders[architecture], lengths=(24, 24), **options)
    export(encoder, tmp_path / "model", probes=["a cat", "a dog"])
    assert identity(load_encoder(tmp_path / "model")) == identity(encoder)


def test_the_weights_hash_reads_names_kinds_shapes_and_bytes():
    one = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    hashes = [
        weights_hash(weights)
        for weights in (
            one,
            {"a": torch.arange(4.0).reshape(2, 2), "b": one["b"]},
            {"a": torch.arange(4.0).view(torch.int32), "b": one["b"]},
            {"c": one["a"], "b": one["b"]},
            {"a": one["a"], "b": torch.tensor(2)},
            {"a": one["a"]},
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert weights_hash(dict(reversed(one.items()))) == hashes[0]
    assert weights_hash({**one, "a": torch.stack([one["a"], one["a"]], 1)[:, 0]}) == hashes[0]
    assert weights_hash({"empty": torch.empty(0, 3)}) != weights_hash({"empty": torch.empty(3, 0)})


def digest_on_rank(folder: str) -> tuple[str, dict]:
    encoder = encoder_of(folder)
    return digest(encoder), identity(encoder)


def test_every_rank_is_told_the_same(folders):
    encoder = encoder_of(folders["bert"])
    assert run_ranks(digest_on_rank, 2, folders["bert"]) == [(digest(encoder), identity(encoder))] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter(folders):
    encoder = encoder_of(folders["bert"])
    before = digest(encoder)
    assert digest(encoder.to("cuda")) == before
