"""The head taken by itself gives the logits of the whole language model, and owns no weight of the backbone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens
from tests.helpers.models import DECODERS, ENCODERS, minilm_dir, tiny_model_dir

TEXTS = [[5, 6, 7, 8, 9], [300, 301], [44]]
TOKENS = RaggedTokens.from_lists(TEXTS)


def language_model_dir(architecture, tmp_path, **config):
    """A folder with body and head, as a language model is published; every head weight random, also biases."""
    folder = tiny_model_dir(architecture, tmp_path, **config)
    kind = AutoModelForMaskedLM if architecture in ENCODERS else AutoModelForCausalLM
    torch.manual_seed(1)
    model = kind.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_logits_are_those_of_the_whole_language_model(architecture, tmp_path):
    folder, whole = language_model_dir(architecture, tmp_path)
    backbone = TransformerBackbone(name=folder).eval()
    head = LanguageModelHead(backbone).eval()
    assert head.new == []
    logits = head(backbone(TOKENS))
    expected = torch.cat([whole(input_ids=torch.tensor([text])).logits[0] for text in TEXTS])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_an_untied_decoder_is_read_from_the_checkpoint(tmp_path):
    folder, whole = language_model_dir("llama", tmp_path, tie_word_embeddings=False)
    backbone = TransformerBackbone(name=folder).eval()
    head = LanguageModelHead(backbone)
    assert not head.tied
    torch.testing.assert_close(dict(head.named_parameters())["model.lm_head.weight"], whole.lm_head.weight)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_tied_decoder_learns_through_the_backbones_own_matrix(architecture, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path))
    head = LanguageModelHead(backbone)
    matrix = backbone.hf_model.get_input_embeddings().weight
    assert all(parameter is not matrix for parameter in head.parameters())
    assert all(tensor.shape != matrix.shape for tensor in head.state_dict().values())
    head(torch.randn(4, 32)).square().sum().backward()
    assert matrix.grad is not None
    assert bool(matrix.grad.any())


def test_a_copy_of_both_is_tied_to_the_copy(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path))
    both = copy.deepcopy(torch.nn.ModuleList([backbone, LanguageModelHead(backbone)]))
    with torch.no_grad():
        both[0].hf_model.get_input_embeddings().weight.zero_()
    assert both[1](torch.randn(2, 32)).eq(0).all()  # a new bias starts at zero


def test_a_checkpoint_without_a_head_gets_a_new_transform_and_says_so(caplog):
    backbone = TransformerBackbone(name=minilm_dir())
    with caplog.at_level(logging.WARNING):
        head = LanguageModelHead(backbone)
    assert head.tied
    assert "cls.predictions.transform.dense.weight" in head.new
    assert "no language-model head" in caplog.text
    assert "tied to the input embeddings" in caplog.text
    assert head(torch.randn(3, 384)).shape == (3, 30522)


def test_a_decoder_that_the_checkpoint_lacks_is_tied_even_where_the_family_does_not_tie(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("llama", tmp_path, tie_word_embeddings=False))
    head = LanguageModelHead(backbone)
    assert head.tied
    assert list(head.parameters()) == []


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert", "llama", "qwen3", "mistral"])
def test_it_can_be_built_without_storage(architecture, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    with torch.device("meta"):
        head = LanguageModelHead(TransformerBackbone(name=folder, weights="random"))
        assert head(torch.zeros(3, 32)).shape == (3, 30522)
    assert all(parameter.is_meta for parameter in head.parameters())


@pytest.mark.parametrize("has_head", [True, False])
def test_under_lora_new_parts_train_and_those_of_the_checkpoint_do_not(has_head, tmp_path):
    folder = language_model_dir("bert", tmp_path)[0] if has_head else tiny_model_dir("bert", tmp_path)
    head = LanguageModelHead(TransformerBackbone(name=folder, lora={"r": 2}))
    assert [p.requires_grad for p in head.parameters()] == [not has_head] * 5


def test_an_adapter_on_the_shared_embeddings_is_refused(tmp_path):
    lora = {"r": 2, "target_modules": ["word_embeddings"]}
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path), lora=lora)
    with pytest.raises(ConfigError, match=r"backbone.lora.target_modules.*Leave the embeddings out"):
        LanguageModelHead(backbone)


def test_frozen_half_precision_states_meet_weights_in_full_precision(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path), dtype="bfloat16", lora={"r": 2})
    assert LanguageModelHead(backbone)(backbone(TOKENS)).dtype == torch.float32
