"""An encoder, a connector and a language model in a row: against both models by transformers, one text at a time."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from embedtrain.assemble import build_pooling
from embedtrain.backbones.bridge import BridgeBackbone, weave
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.config.compose import compose_config
from embedtrain.config.validate import validate
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.pooling.learned_tokens import closing_ids
from embedtrain.training.stages import plain_weights, take_over
from embedtrain.types import Backbone, RaggedTokens
from tests.helpers.models import tiny_model_dir
from tests.helpers.runs import tiny_settings, tiny_trainer, train_tiny
from tests.pooling.test_every_head import NAMES, SMALL

ONE_MODEL = ("splade", "learned_tokens")  # heads that take both ends of a backbone for one
LENGTHS = (9, 3, 9, 1, 5)
WIDE = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    """An encoder, and a language model that is wider and deeper."""
    folder = tmp_path_factory.mktemp("halves")
    return tiny_model_dir("xlm-roberta", folder), tiny_model_dir("llama", folder, **WIDE)


def bridge(
    folders, *, attention="bidirectional", kernel="auto", learned_tokens=1, lora=None, **options
) -> BridgeBackbone:
    torch.manual_seed(0)
    return BridgeBackbone(
        encoder=TransformerBackbone(name=folders[0], kernel=kernel, dropout=0.0),
        llm=TransformerBackbone(name=folders[1], attention=attention, kernel=kernel, dropout=0.0, lora=lora),
        learned_tokens=learned_tokens,
        **options,
    )


def texts(lengths=LENGTHS):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(200, 2000, (n,), generator=draw).tolist() for n in lengths]


def slow(model: BridgeBackbone, folders, attention: str) -> list[list[torch.Tensor]]:
    """Of each text all layers [n, H'], by plain transformers models, text by text."""
    encoder, llm = (AutoModel.from_pretrained(folder, attn_implementation="eager").eval() for folder in folders)
    llm.config.is_causal = attention == "causal"
    connector = model.connector
    found = []
    for text in texts():
        states = encoder(torch.tensor([text])).last_hidden_state[0]
        hidden = connector.inner.weight @ states.T + connector.inner.bias[:, None]
        vectors = (connector.outer.weight @ hidden.clamp(min=0) + connector.outer.bias[:, None]).T
        vectors = torch.cat([vectors, connector.learned])
        layers = llm(inputs_embeds=vectors[None], output_hidden_states=True).hidden_states
        found.append([layer[0, : len(text)] for layer in layers])
    return found


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("learned_tokens", [0, 1, 3])
def test_states_are_those_of_the_two_models_in_a_row(folders, kernel, attention, learned_tokens):
    model = bridge(folders, attention=attention, kernel=kernel, learned_tokens=learned_tokens).eval()
    tokens = RaggedTokens.from_lists(texts())
    expected = [torch.cat(layer) for layer in zip(*slow(model, folders, attention), strict=True)]
    assert isinstance(model, Backbone)
    assert model.hidden_size == 48
    torch.testing.assert_close(model(tokens), expected[-1], rtol=1e-4, atol=1e-5)
    for found, wanted in zip(model(tokens, all_layers=True), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_encoder_connector_and_language_model(folders):
    model = bridge(folders).eval()
    weight = torch.randn(sum(LENGTHS), 48, generator=torch.Generator().manual_seed(1))
    (model(RaggedTokens.from_lists(texts())) * weight).sum().backward()
    found = {name: p.grad for name, p in model.connector.named_parameters()}
    model.connector.zero_grad()
    (torch.cat([layers[-1] for layers in slow(model, folders, "bidirectional")]) * weight).sum().backward()
    for name, parameter in model.connector.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)
        assert torch.linalg.vector_norm(parameter.grad) > 1e-3, name
    layers = [name for name, p in model.named_parameters() if "layer" in name and p.grad is not None]
    assert {name.partition(".")[0] for name in layers} == {"encoder", "llm"}


def test_the_learned_token_is_read_where_attention_looks_that_far(folders):
    """A text's tokens stand before it: a causal language model never sees it."""
    for attention, read in (("bidirectional", True), ("causal", False)):
        model = bridge(folders, attention=attention).eval()
        tokens = RaggedTokens.from_lists(texts())
        before = model(tokens)
        with torch.no_grad():
            model.connector.learned.add_(3)
        assert torch.equal(before, model(tokens)) != read


def test_rows_are_woven_text_by_text():
    a, b = torch.arange(5.0)[:, None], 10 + torch.arange(3.0)[:, None]
    run = weave([(a, torch.tensor([0, 2, 2, 5])), (b, torch.tensor([0, 1, 3, 3]))])
    assert run.values.flatten().tolist() == [0, 1, 10, 11, 12, 2, 3, 4]
    assert run.offsets.tolist() == [0, 3, 5, 8]
    assert [place.tolist() for place in run.places] == [[0, 1, 5, 6, 7], [2, 3, 4]]


def text_encoder(model: BridgeBackbone, name: str) -> Encoder:
    tokenizer = TextTokenizer(
        tokenizer=model.tokenizer(),
        prompts=Prompts(document="text: ", pool_prompt=False),
        max_query_length=24,
        max_document_length=24,
    )
    node = {**compose_config([f"pooling={name}"]).config["pooling"], **SMALL.get(name, {})}
    pooling = build_pooling(node, model, tokenizer.hf)
    tokenizer.closing_ids = closing_ids(pooling)
    return Encoder(backbone=model, pooling=pooling, tokenizer=tokenizer).eval()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("moe_router", *ONE_MODEL)])
def test_every_pooling_reads_it(folders, name):
    made = []
    for kernel in ("ragged", "padded"):
        encoder = text_encoder(bridge(folders, kernel=kernel), name)
        tokens, _ = encoder.tokenizer.encode(["a cat", "maps; maps.", "two words " * 10], role="document")
        made.append(encoder(tokens))
    torch.testing.assert_close(made[0].values, made[1].values, rtol=1e-4, atol=1e-5)
    assert made[0].dim == encoder.embedding_dim


@pytest.mark.parametrize("name", ONE_MODEL)
def test_heads_that_take_both_ends_for_one_model_are_refused(folders, name):
    with pytest.raises(ConfigError, match=r"one model at both ends.*tiny-xlm-roberta.*tiny-llama"):
        text_encoder(bridge(folders), name)


def settings(folder, folders, *overrides, name="run"):
    halves = (f"backbone.encoder.name={folders[0]}", f"backbone.llm.name={folders[1]}")
    named = [text for text in tiny_settings(folder, *overrides, name=name) if not text.startswith("backbone.name=")]
    composed = compose_config([*named, "backbone=bridge", "backbone.llm.attention=bidirectional", *halves])
    validate(composed.config, composed.problems)
    return composed.config


def test_a_run_resumes_to_the_bit_and_cached_gradients_are_the_same(folders, tmp_path):
    lora = "backbone.llm.lora={r: 2, alpha: 4, dropout: 0.1}"
    _, whole, _ = train_tiny(settings(tmp_path, folders, lora, name="whole"))
    config = settings(tmp_path, folders, lora)
    train_tiny(config, stop_after=2)
    _, resumed, _ = train_tiny(config)
    assert torch.equal(whole, resumed)
    _, cached, _ = train_tiny(settings(tmp_path, folders, lora, "training.cached_share=1", name="cached"))
    assert torch.equal(whole, cached)


def test_what_trains_may_be_the_connector_alone(folders, tmp_path):
    trainer = tiny_trainer(settings(tmp_path, folders, "encoder.train_only=[connector]"))
    assert {name.rpartition("connector.")[2] for name, _ in trainer.named} == {
        *("inner.weight", "inner.bias", "outer.weight", "outer.bias", "learned")
    }


def test_longest_text_is_what_both_halves_have_positions_for(folders):
    model = bridge(folders, learned_tokens=2)
    assert model.longest_text == model.encoder.longest_text == 127
    model.llm.longest_text = 64
    assert model.longest_text == 62


def test_a_connector_is_read_from_its_folder_or_refused_by_shape(folders, tmp_path):
    with torch.no_grad():
        trained = bridge(folders)
        trained.connector.learned.add_(1)
    save_file(trained.connector.state_dict(), tmp_path / "model.safetensors")
    again = bridge(folders, connector=str(tmp_path))
    assert torch.equal(again.connector.learned, trained.connector.learned)
    with pytest.raises(CheckpointError, match="learned_tokens"):
        bridge(folders, learned_tokens=2, connector=str(tmp_path))
    with pytest.raises(CheckpointError, match="is not there"):
        bridge(folders, connector=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="expected 0 or more, got -1"):
        bridge(folders, learned_tokens=-1)


def test_a_stage_hands_on_both_models_and_the_connector_with_adapters_merged(folders, tmp_path):
    lora = ("backbone.encoder.lora={r: 2, alpha: 4}", "backbone.llm.lora={r: 2, alpha: 4}")
    first = tiny_trainer(settings(tmp_path, folders, *lora, name="first")).step.encoder.eval()
    for name, parameter in first.named_parameters():
        if "lora_B" in name or "connector" in name:
            parameter.data.normal_(std=0.1)
    save_file(
        {name: tensor.contiguous() for name, tensor in plain_weights(first).items()}, tmp_path / "weights.safetensors"
    )
    second = tiny_trainer(settings(tmp_path, folders, *lora, name="second")).step.encoder.eval()
    texts = ["a red river", "seven cats"]
    assert not torch.allclose(first.encode(texts), second.encode(texts), atol=1e-3)
    take_over(second, tmp_path / "weights.safetensors")
    torch.testing.assert_close(second.encode(texts), first.encode(texts), rtol=1e-4, atol=1e-5)


def test_frozen_weights_in_bf16_under_autocast_train_their_adapters_and_the_connector(folders, tmp_path):
    half = ("backbone.llm.dtype=bfloat16", "backbone.llm.lora={r: 2}", "training.mixed_precision=bf16")
    more = ("backbone.llm.gradient_checkpointing=true", "backbone.learned_tokens=0", "training.cached_share=1")
    config = settings(tmp_path, folders, *half, *more)
    before = {name: p.detach().clone() for name, p in tiny_trainer(config).named}
    trainer = tiny_trainer(settings(tmp_path, folders, *half, *more, name="again"))
    trainer.fit(0)
    after = dict(trainer.named)
    moved = {name for name in before if before[name].numel() and not torch.equal(before[name], after[name])}
    assert {name for name in before if "connector" in name and before[name].numel()} <= moved
    assert {name for name in before if "lora_B" in name} <= moved
    assert not any("llm" in name and "lora" not in name for name in before)
