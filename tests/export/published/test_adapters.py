"""LoRA adapters of peft, written by peft itself: as a backbone, and as the transformer of a sentence-transformers folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import AutoModel, AutoModelForCausalLM

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import CheckpointError
from embedtrain.export import load_encoder
from embedtrain.types import RaggedTokens
from tests.export.published.folders import edit_json, write_weights
from tests.export.published.reference import states
from tests.helpers.models import tiny_model_dir

IDS = [5, 17, 99, 3, 42]


def adapter(tmp_path: Path, model_class=AutoModel, **options) -> tuple[Path, torch.Tensor]:
    """(folder of an adapter that changes its base model, states of `IDS` as peft computes them)."""
    base = tiny_model_dir("mistral", tmp_path)
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **options)
    peft = get_peft_model(model_class.from_pretrained(base), config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "adapter"
    peft.save_pretrained(folder)
    body = peft.base_model.model
    body = getattr(body, "model", body).eval()
    return folder, states(body, IDS)


def found(folder: Path, **options) -> torch.Tensor:
    backbone = TransformerBackbone(name=str(folder), **options).eval()
    with torch.no_grad():
        return backbone(RaggedTokens.from_lists([IDS]))


@pytest.mark.parametrize("model_class", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_states_are_those_of_peft(model_class, rslora, tmp_path):
    folder, expected = adapter(tmp_path, model_class, use_rslora=rslora)
    torch.testing.assert_close(found(folder), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):  # the adapter matters
        torch.testing.assert_close(found(tmp_path / "tiny-mistral"), expected, rtol=1e-2, atol=1e-2)


def test_new_adapters_go_on_top_of_an_old_one(tmp_path):
    folder, expected = adapter(tmp_path)
    torch.testing.assert_close(found(folder, lora={"r": 2}), expected, rtol=1e-4, atol=1e-5)


def test_the_tokenizer_is_the_adapters_own_else_the_base_models(tmp_path):
    folder, _ = adapter(tmp_path)
    assert TransformerBackbone(name=str(folder)).tokenizer()("a cat")["input_ids"]
    shutil.copy(tmp_path / "tiny-mistral" / "tokenizer.json", folder / "tokenizer.json")
    shutil.copy(tmp_path / "tiny-mistral" / "tokenizer_config.json", folder / "tokenizer_config.json")
    edit_json(folder / "tokenizer_config.json", model_max_length=77)
    assert TransformerBackbone(name=str(folder)).tokenizer().model_max_length == 77


def test_a_sentence_transformers_folder_around_an_adapter(tmp_path):
    transformer = st.Transformer(tiny_model_dir("bert", tmp_path), max_seq_length=20)
    model = SentenceTransformer(modules=[transformer, st.Pooling(32), st.Normalize()], device="cpu")
    model.add_adapter(LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    model.save(str(tmp_path / "theirs"), create_model_card=False)
    assert (tmp_path / "theirs" / "adapter_config.json").exists()
    texts = ["a cat", "The quick brown fox"]
    expected = torch.from_numpy(model.encode(texts))
    torch.testing.assert_close(load_encoder(tmp_path / "theirs").encode(texts), expected, rtol=1e-4, atol=1e-5)


def change(**changes):
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def weights(edit):
    def rewrite(folder):
        write_weights(edit(load_file(folder / "adapter_model.safetensors")), folder, "adapter_model.safetensors")

    return rewrite


KEY = "base_model.model.layers.1.self_attn.v_proj.lora_B.weight"
REFUSED = {
    r"has \{'use_dora': True\}: more than plain LoRA": change(use_dora=True),
    r"has \{'peft_type': 'IA3'\}": change(peft_type="IA3"),
    r"has \{'modules_to_save': \['embed_tokens'\]\}": change(modules_to_save=["embed_tokens"]),
    "holds an adapter without its base model": change(base_model_name_or_path=None),
    r"adapter_model\.safetensors is missing": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    r"Missing: layers\.1\.self_attn\.v_proj\.lora_B": weights(lambda w: {k: x for k, x in w.items() if k != KEY}),
    r"Unexpected: base_model\.model\.score\.weight": weights(
        lambda w: w | {"base_model.model.score.weight": torch.ones(2)}
    ),
    r"Unexpected: layers\.7\.mlp\.down_proj": weights(
        lambda w: {k.replace("layers.1", "layers.7"): x for k, x in w.items()}
    ),
    r"v_proj has lora_A \[3, 32\] and lora_B \[5, 3\]; the layer .* is \[16, 32\]": weights(
        lambda w: w | {KEY: torch.ones(5, 3)}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_more_than_plain_lora_or_does_not_fit_is_named(message, tmp_path):
    folder, _ = adapter(tmp_path)
    REFUSED[message](folder)
    with pytest.raises(CheckpointError, match=message):
        TransformerBackbone(name=str(folder))


def test_peft_reads_the_same_folder(tmp_path):
    """The files of these tests are what peft itself loads."""
    folder, expected = adapter(tmp_path)
    base = AutoModel.from_pretrained(tmp_path / "tiny-mistral")
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
    torch.testing.assert_close(states(merged, IDS), expected, rtol=1e-4, atol=1e-5)
