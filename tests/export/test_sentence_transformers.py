"""What plain sentence-transformers makes of the folder is what the encoder makes of the text."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export import verify
from embedtrain.export.modules.reload import with_sentence_transformers
from embedtrain.export.probes import expected_embeddings, probe_texts
from embedtrain.export.sentence_transformers import check_exportable, export
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.weighted_mean import WeightedMeanPooling
from tests.helpers.models import tiny_model_dir

PROBES = ["how to read a file line by line", "open(path).read()"]


def tiny_encoder(
    tmp_path, architecture="bert", pooling=None, *, prompts=None, lengths=(24, 24), append_eos=None, **options
):
    """A tiny encoder with weights that make every part visible; `options` go to backbone and Encoder by name."""
    torch.manual_seed(0)
    head = {name: options.pop(name) for name in ("normalize", "projection_dim") if name in options}
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), **options)
    pooling = pooling or MeanPooling()
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=prompts or Prompts(),
        max_query_length=lengths[0],
        max_document_length=lengths[1],
        append_eos=isinstance(pooling, EosPooling) if append_eos is None else append_eos,
    )
    return Encoder(backbone=backbone, pooling=pooling, tokenizer=tokenizer, **head)


def test_a_fresh_process_agrees_whatever_the_launcher_told_this_one(tmp_path, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    report = export(tiny_encoder(tmp_path), tmp_path / "model", probes=PROBES)
    assert report.worst_cosine > 0.99999
    assert report.num_probes > len(PROBES)
    assert report.verified_with.startswith("sentence-transformers ")
    assert report.path == tmp_path / "model"


def latent_attention():
    torch.manual_seed(1)
    return LatentAttentionPooling(hidden_size=32, num_latents=6, num_heads=2, head_dim=8, expansion=2)


DECODER = {"architecture": "qwen3"}
CASES = {
    "cls": {"pooling": ClsPooling()},
    "mean": {},
    "roberta": {"architecture": "roberta"},
    "modernbert": {"architecture": "modernbert"},
    "a model of ours": {"architecture": "alibi_bert"},
    "eos on an encoder": {"pooling": EosPooling()},
    "bidirectional decoder": {**DECODER, "attention": "bidirectional"},
    "bidirectional gemma": {"architecture": "gemma3_text", "attention": "bidirectional"},
    "causal decoder with eos": {**DECODER, "attention": "causal", "pooling": EosPooling()},
    "sliding causal decoder with eos": {"architecture": "mistral", "pooling": EosPooling()},
    "bidirectional decoder with eos": {**DECODER, "attention": "bidirectional", "pooling": EosPooling()},
    "mean over appended eos": {**DECODER, "append_eos": True},
    "weighted mean": {**DECODER, "attention": "causal", "pooling": WeightedMeanPooling()},
    "max": {"pooling": MaxPooling()},
    "first and last layer": {"pooling": FirstLastPooling()},
    "first and last layer of a decoder": {**DECODER, "pooling": FirstLastPooling()},
    "latent attention": {**DECODER, "attention": "bidirectional", "pooling": latent_attention()},
    "latent attention, prompts not pooled": {
        **DECODER,
        "attention": "bidirectional",
        "pooling": latent_attention(),
        "prompts": Prompts(query="Instruct: find\nQuery:", pool_prompt=False),
        "projection_dim": 12,
    },
    "weighted mean, prompts not pooled": {
        "pooling": WeightedMeanPooling(),
        "prompts": Prompts(query="Instruct: find\nQuery:", pool_prompt=False),
    },
    "max, prompts not pooled": {"pooling": MaxPooling(), "prompts": Prompts(query="find:", pool_prompt=False)},
    "lora": {**DECODER, "attention": "bidirectional", "lora": {"r": 4}},
    "lora on an encoder": {"lora": {"r": 4}},
    "lora and trained heads": {
        **DECODER,
        "attention": "bidirectional",
        "lora": {"r": 4},
        "pooling": latent_attention(),
        "projection_dim": 12,
    },
    "frozen in bfloat16 under lora": {"lora": {"r": 4}, "dtype": "bfloat16"},
    "projection": {"projection_dim": 12},
    "projection, any length": {"projection_dim": 12, "normalize": False},
    "any length": {"normalize": False},
    "prompts": {"prompts": Prompts(query="query: ", document="passage: ")},
    "prompts and eos": {**DECODER, "pooling": EosPooling(), "prompts": Prompts(query="Instruct: find\nQuery: ")},
    "prompts not pooled": {"prompts": Prompts(query="Instruct: find\nQuery: ", pool_prompt=False)},
    "prompts not pooled, cls": {"pooling": ClsPooling(), "prompts": Prompts(query="find: ", pool_prompt=False)},
    "prompts not pooled, decoder": {
        **DECODER,
        "attention": "bidirectional",
        "prompts": Prompts(query="Instruct: find\nQuery: ", document="text: ", pool_prompt=False),
    },
    "an instruction in the prompt": {"prompts": Prompts(query="Instruct: {instruction}\nQuery: ")},
    "text behind": {"prompts": Prompts(query='find "{text}" now', document='in "{text}" now')},
    "in one word": {
        **DECODER,
        "pooling": EosPooling(),
        "append_eos": False,
        "prompts": Prompts(query='This: "{text}" means in one word: "', document='This: "{text}" means in one word: "'),
    },
    "text behind and eos": {
        **DECODER,
        "pooling": EosPooling(),
        "prompts": Prompts(
            query="{instruction}: {text}\n", document="{text}\n", sources={"a": {"query": "a {text}\n"}}
        ),
    },
    "two lengths": {"lengths": (8, 24)},
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", CASES)
def test_the_folder_gives_the_embeddings(name, tmp_path):
    encoder = tiny_encoder(tmp_path, **CASES[name])
    make_adapters_matter(encoder)
    report = export(encoder, tmp_path / "model", probes=PROBES)
    assert report.worst_cosine > 0.999999
    files = [path.name for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert ("modeling_latent_attention.py" in files) == isinstance(encoder.pooling, LatentAttentionPooling)


def make_adapters_matter(encoder):
    """LoRA starts as the identity; random weights make a lost or half-merged adapter visible."""
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.usefixtures("in_process")
def test_latent_attention_needs_the_flag_and_says_so(tmp_path):
    encoder = tiny_encoder(tmp_path, "qwen3", latent_attention(), attention="bidirectional")
    report = export(encoder, tmp_path / "model", probes=PROBES)
    assert report.worst_cosine > 0.99999
    assert any("trust_remote_code=True" in note for note in report.notes)
    assert "trust_remote_code=True)" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "model"), device="cpu")


@pytest.mark.usefixtures("in_process")
def test_plain_names_that_every_version_knows(tmp_path):
    export(tiny_encoder(tmp_path, projection_dim=8), tmp_path / "model", probes=PROBES)
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    pooling = json.loads((tmp_path / "model" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["word_embedding_dimension"] == 32
    assert json.loads((tmp_path / "model" / "sentence_bert_config.json").read_text())["max_seq_length"] == 24


@pytest.mark.usefixtures("in_process")
def test_training_goes_on_unchanged_after_an_export(tmp_path):
    encoder = tiny_encoder(tmp_path, lora={"r": 4}, dtype="bfloat16")
    make_adapters_matter(encoder)
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    export(encoder, tmp_path / "model", probes=PROBES)
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert all(module.training for module in encoder.modules())


@pytest.mark.usefixtures("in_process")
def test_stored_in_half_precision_where_asked(tmp_path):
    export(tiny_encoder(tmp_path), tmp_path / "model", probes=PROBES, dtype="bfloat16")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.usefixtures("in_process")
def test_what_the_folder_cannot_say_is_said_in_the_card(tmp_path):
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ", sources={"sts": {"query": "Retrieve: "}})
    encoder = tiny_encoder(tmp_path, "qwen3", EosPooling(), attention="bidirectional", lengths=(8, 24), prompts=prompts)
    report = export(encoder, tmp_path / "model", probes=PROBES)
    card = (tmp_path / "model" / "README.md").read_text()
    for fact in (
        "queries at 8 and documents at 24",
        "takes an instruction",
        "transformers before 5.2",
        'prompt_name="sts_',
    ):
        assert any(fact in note for note in report.notes), fact
        assert fact in card
    saved = json.loads((tmp_path / "model" / "config_sentence_transformers.json").read_text())
    assert saved["prompts"] == {"document": "", "sts_query": "Retrieve: "}


def spoil_weights(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, tensor in weights.items():
        if "layer.1" in name and tensor.ndim == 2:
            weights[name] = tensor + 0.05 * torch.randn_like(tensor)
    save_file(weights, path, metadata={"format": "pt"})


def spoil_pooling(folder):
    path = folder / "1_Pooling" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True})
    )


def spoil_prompt(folder):
    path = folder / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace("query: ", "query:: "))


def spoil_norm(folder):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))


def spoil_length(folder):
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 23, "do_lower_case": false}')


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_pooling, spoil_prompt, spoil_norm, spoil_length])
def test_a_folder_that_gives_other_embeddings_is_refused(spoil, tmp_path, monkeypatch):
    def embed(folder, task, library):
        spoil(folder)
        return with_sentence_transformers(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr(verify, "_embed_in_fresh_process", embed)
    encoder = tiny_encoder(tmp_path, prompts=Prompts(query="query: "))
    with pytest.raises(
        CheckpointError, match=r"export refused: .*Worst cosine .* for the (query|document) '.*rejected"
    ):
        export(encoder, tmp_path / "model", probes=PROBES)
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "model.rejected" / "modules.json").exists()
    assert not (tmp_path / "model.partial").exists()


def test_a_folder_that_cannot_be_loaded_is_refused_with_the_reason(tmp_path, monkeypatch):
    program = tmp_path / "reload.py"
    program.write_text("raise ImportError('no module of this name')")
    monkeypatch.setattr(verify, "_RELOAD", program)
    with pytest.raises(
        CheckpointError, match=r"cannot load the folder in a fresh process:[\s\S]*no module of this name"
    ):
        export(tiny_encoder(tmp_path), tmp_path / "model", probes=PROBES)
    assert not list(tmp_path.glob("model*"))


def test_a_full_disk_is_said_in_bytes_before_writing(tmp_path, monkeypatch):
    encoder = tiny_encoder(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    needed = 4 * encoder.num_parameters()
    with pytest.raises(
        CheckpointError, match=r"model could not be written: the disk is full \(([\d,]+) bytes needed, 1,000 free"
    ) as e:
        export(encoder, tmp_path / "model", probes=PROBES)
    assert int(str(e.value).split("full (")[1].split(" ")[0].replace(",", "")) >= needed
    assert not list(tmp_path.glob("model*"))


@pytest.mark.usefixtures("in_process")
def test_a_second_export_replaces_the_first_and_nothing_else_stays(tmp_path):
    export(tiny_encoder(tmp_path), tmp_path / "model", probes=PROBES)
    export(tiny_encoder(tmp_path, projection_dim=8), tmp_path / "model", probes=PROBES)
    assert (tmp_path / "model" / "2_Dense").exists()
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model"]


def test_without_sentence_transformers_our_own_reader_checks_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    report = export(tiny_encoder(tmp_path), tmp_path / "model", probes=PROBES)
    assert report.worst_cosine > 0.99999
    assert report.verified_with == "embedtrain's own reader (sentence-transformers is not installed)"


def test_a_pooling_of_ones_own_is_refused_before_anything_is_written(tmp_path):
    class Median(torch.nn.Module):
        pass

    with pytest.raises(ConfigError, match="pooling: Median cannot be exported"):
        export(tiny_encoder(tmp_path, pooling=Median()), tmp_path / "model", probes=PROBES)
    assert not list(tmp_path.glob("model*"))


def test_a_prompt_that_joins_the_text_cannot_be_left_out_of_pooling(tmp_path):
    encoder = tiny_encoder(tmp_path, prompts=Prompts(query="con", pool_prompt=False))
    with pytest.raises(ConfigError, match=r"prompts.query: 'con' cannot be exported with prompts.pool_prompt=false"):
        check_exportable(encoder)


def test_the_long_probe_is_longer_than_the_maximum(tmp_path):
    encoder = tiny_encoder(tmp_path)
    texts, notes = probe_texts(PROBES, encoder.tokenizer)
    assert len(encoder.tokenizer.hf(texts[-1])["input_ids"]) > 24
    assert notes == []
    assert set(expected_embeddings(encoder, texts)) == {"query", "document"}
