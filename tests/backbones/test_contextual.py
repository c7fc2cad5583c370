"""The second encoder reads vectors of other documents in front of each text: against a loop over texts, one at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from embedtrain.backbones.contextual import ContextualBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir

J, P = 5, 3
FAMILIES = ("bert", "roberta", "modernbert", "nomic_bert")
TEXTS = [[101, 2003, 102], [101, 7, 8, 9, 10, 11, 102], [101, 5, 102], [101, 42, 43, 44, 102]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a tiny model of a family."""
    made = {}

    def of(family: str) -> str:
        if family not in made:
            made[family] = tiny_model_dir(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


def backbone(name: str, **options) -> ContextualBackbone:
    torch.manual_seed(1)
    settings = {"num_context": J, "num_prompts": P, **options}
    return ContextualBackbone(name=name, **settings).eval()


def vectors(seed: int = 3) -> torch.Tensor:
    return torch.randn(J, 32, generator=torch.Generator().manual_seed(seed))


def one_at_a_time(model: ContextualBackbone, name: str, context: torch.Tensor) -> torch.Tensor:
    """By a model of transformers as it is, from vectors and positions written down for each text."""
    plain = AutoModel.from_pretrained(name, attn_implementation="eager").eval()
    layers = model.context_layers.to_prompts
    assert layers is not None
    prompts = layers[2](torch.relu(layers[0](torch.ones(32)))).reshape(P, 32)
    family = plain.config.model_type
    learned = family in ("bert", "roberta")
    first = plain.config.pad_token_id + 1 if family == "roberta" else 0  # the model's first position
    found = []
    for ids in TEXTS:
        words = plain.get_input_embeddings()(torch.tensor(ids))
        after = first + (0 if learned else J)
        positions = [first] * J + list(range(after, after + P + len(ids)))
        states = plain(
            inputs_embeds=torch.cat([context, prompts, words])[None], position_ids=torch.tensor([positions])
        ).last_hidden_state[0]
        found.append(states[J + P :])
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_of_each_text_read_by_itself_behind_the_context(folder, family, kernel):
    model = backbone(folder(family), kernel=kernel)
    assert model.kernel == kernel
    found = model(RaggedTokens.from_lists(TEXTS), context=vectors())
    torch.testing.assert_close(found, one_at_a_time(model, folder(family), vectors()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "modernbert"])  # which has windows
def test_the_order_of_the_context_is_of_no_consequence_and_its_content_is(folder, family):
    model, tokens = backbone(folder(family)), RaggedTokens.from_lists(TEXTS)
    found = model(tokens, context=vectors())
    torch.testing.assert_close(model(tokens, context=vectors().flip(0)), found, rtol=1e-4, atol=1e-5)
    assert (model(tokens, context=vectors(4)) - found).abs().max() > 1e-2


@torch.no_grad()
def test_every_layer_is_that_of_the_texts_alone(folder):
    model, tokens = backbone(folder("bert")), RaggedTokens.from_lists(TEXTS)
    layers = model(tokens, context=vectors(), all_layers=True)
    assert [layer.shape for layer in layers] == [(tokens.num_tokens, 32)] * 3
    torch.testing.assert_close(layers[-1], model(tokens, context=vectors()))


@torch.no_grad()
def test_a_document_of_the_context_is_two_layers_behind_the_mean_of_all_its_states(folder):
    model = backbone(folder("nomic_bert"))
    plain = AutoModel.from_pretrained(folder("nomic_bert")).eval()
    found = model.encode_context(RaggedTokens.from_lists(TEXTS, skip=[1, 1, 1, 1]))
    for ids, vector in zip(TEXTS, found, strict=True):
        mean = plain(torch.tensor([ids])).last_hidden_state[0].mean(0)
        layers = model.context_layers.to_context
        expected = layers[2](torch.nn.functional.gelu(layers[0](mean)))
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_a_context_the_null_vector_stands_for_all_of_it(folder):
    model, tokens = backbone(folder("bert")), RaggedTokens.from_lists(TEXTS)
    nothing = model(tokens)
    torch.testing.assert_close(nothing, model(tokens, context=model.context_layers.null.expand(J, -1)))
    model.context = vectors()
    torch.testing.assert_close(model(tokens), model(tokens, context=vectors()))
    assert not torch.allclose(model(tokens), nothing)
    assert "context" not in model.state_dict()


def test_in_training_a_share_of_the_context_is_null_by_text_and_learns(folder):
    model = backbone(folder("bert"), null_share=0.5, num_context=400, dropout=0.0).train()
    context = torch.zeros(400, 32)
    torch.manual_seed(0)
    front = model._front(3, context)[:, :400]
    dropped = (front == model.context_layers.null).all(-1)
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(dropped[0], dropped[1])
    front.sum().backward()
    torch.testing.assert_close(model.context_layers.null.grad, torch.full((32,), float(dropped.sum())))
    assert not backbone(folder("bert"), null_share=0.0).context_layers.null.requires_grad


def test_every_weight_of_both_encoders_gets_a_gradient(folder):
    model = backbone(folder("nomic_bert"), null_share=0.2).train()
    tokens = RaggedTokens.from_lists(TEXTS)
    context = model.encode_context(tokens)
    model(tokens, context=torch.cat([context, context[:1]])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_learned_positions_leave_room_for_the_learned_vectors(folder):
    model = backbone(folder("bert"))
    assert model.longest_text == 128 - P
    model(RaggedTokens.from_lists([[5] * (128 - P)]))
    with pytest.raises(ConfigError, match="knows 125 positions"):
        model(RaggedTokens.from_lists([[5] * (129 - P)]))


def test_what_cannot_be_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.num_context=0"):
        backbone(folder("bert"), num_context=0)
    with pytest.raises(ConfigError, match=r"backbone\.null_share=1\.0"):
        backbone(folder("bert"), null_share=1.0)
    bloom = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=64)
    AutoModel.from_config(bloom).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="takes no position ids"):
        backbone(str(tmp_path))
    with pytest.raises(ConfigError, match=r"vectors of 5 documents, 32 numbers each, got \(4, 32\)"):
        backbone(folder("bert"))(RaggedTokens.from_lists(TEXTS), context=vectors()[:4])
