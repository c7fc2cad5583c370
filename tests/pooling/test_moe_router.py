"""Routing weights of a mixture of experts, from real (tiny) ones, against transformers called by hand."""

from __future__ import annotations

import pytest
import torch

from embedtrain.assemble import build_pooling
from embedtrain.backbones.facts import head_facts
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.moe_router import MoeRouterPooling
from tests.helpers.models import tiny_model_dir

TEXTS = ["a cat", "the quick brown fox", "maps", "two words " * 6]


def encoder(folder, kernel="auto", **options):
    backbone = TransformerBackbone(name=folder, kernel=kernel)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=Prompts(),
        max_query_length=24,
        max_document_length=24,
        append_eos=True,
    )
    node = {"_target_": "embedtrain.pooling.moe_router.MoeRouterPooling", **options}
    return Encoder(
        backbone=backbone,
        pooling=build_pooling(node, backbone, tokenizer.hf),
        tokenizer=tokenizer,
        normalize=False,
        views={"mean": MeanPooling()},
    ).eval()


def by_hand(model, text):
    """(state, routing weights) of one text's last token, straight from transformers."""
    ids, _ = model.tokenizer.encode([text], role="query")
    output = model.backbone.hf_model(
        input_ids=ids.ids[None], attention_mask=torch.ones(1, ids.num_tokens), output_router_logits=True
    )
    return output.last_hidden_state[0, -1], torch.cat([layer[-1].softmax(-1) for layer in output.router_logits])


@pytest.mark.parametrize(
    ("architecture", "kernel"), [("mixtral", "ragged"), ("mixtral", "padded"), ("qwen2_moe", "padded")]
)
def test_states_and_routing_of_the_last_token(architecture, kernel, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    reference = encoder(folder, "padded")
    parts = [by_hand(reference, text) for text in TEXTS]
    h, r = (torch.stack(rows) for rows in zip(*parts, strict=True))
    assert r.shape == (len(TEXTS), 8)
    torch.testing.assert_close(r.sum(1), torch.full((len(TEXTS),), 2.0))  # one distribution per layer
    together = encoder(folder, kernel, combine="concat")
    assert together.backbone.kernel == kernel
    assert together.embedding_dim == 40
    torch.testing.assert_close(together.encode(TEXTS), torch.cat([h, r], dim=1), rtol=1e-4, atol=1e-5)
    summed = encoder(folder, kernel, combine="sum", alpha=0.5).encode(TEXTS)
    cosines = [torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2) for x in (h, r)]
    torch.testing.assert_close(summed @ summed.T, cosines[0] + 0.5 * cosines[1], rtol=1e-4, atol=1e-5)


def test_other_heads_beside_it_read_their_states(tmp_path):
    model = encoder(tiny_model_dir("mixtral", tmp_path))
    made = model.encode_embeddings(TEXTS, views=True)
    alone = Encoder(backbone=model.backbone, pooling=MeanPooling(), tokenizer=model.tokenizer, normalize=False)
    torch.testing.assert_close(made.views["mean"].values, alone.encode(TEXTS))


def test_a_model_without_experts_is_refused(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("mistral", tmp_path))
    facts = head_facts(backbone, backbone.tokenizer())
    with pytest.raises(ConfigError, match="this backbone has none"):
        MoeRouterPooling(hidden_size=32, num_routes=facts["num_routes"])
