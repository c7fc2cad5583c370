"""What holds for every pooling that has a YAML, on a real backbone: built by the program, ragged equals padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedtrain.assemble import build_pooling
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.config.compose import compose_config
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.pooling.learned_tokens import closing_ids
from embedtrain.types import Embeddings
from tests.helpers.models import tiny_model_dir

ARCHITECTURES = {"moe_router": "mixtral"}
NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "pooling").glob("*.yaml"))
# The published sizes are of models with billions of weights.
SMALL = {
    "latent_attention": {"num_latents": 6, "num_heads": 2, "head_dim": 8, "expansion": 2},
    "multi_layer": {"num_latents": 6, "num_heads": 2, "head_dim": 8, "expansion": 2},
    "bge_m3_multi_vector": {"dim": 32},
    "learned_tokens": {"num_query_tokens": 2, "num_document_tokens": 3},
}
TEXTS = ["a cat", "the quick brown fox, and the lazy dog", "maps; maps.", "two words " * 10]


def encoder(name, folder, kernel):
    node = {**compose_config([f"pooling={name}"]).config["pooling"], **SMALL.get(name, {})}
    backbone = TransformerBackbone(name=folder, kernel=kernel)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=Prompts(document="text: ", pool_prompt=False),
        max_query_length=24,
        max_document_length=24,
    )
    torch.manual_seed(0)
    pooling = build_pooling(node, backbone, tokenizer.hf)
    tokenizer.closing_ids = closing_ids(pooling)
    return Encoder(backbone=backbone, pooling=pooling, tokenizer=tokenizer).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_head_built_from_its_yaml_is_the_same_ragged_and_padded(name, tmp_path):
    folder = tiny_model_dir(ARCHITECTURES.get(name, "bert"), tmp_path)
    made: dict[str, Embeddings] = {}
    for kernel in ("ragged", "padded"):
        model = encoder(name, folder, kernel)
        tokens, _ = model.tokenizer.encode(TEXTS, role="document")
        made[kernel] = model(tokens)
        made[kernel].values.square().sum().backward()
        untrained = [n for n, p in model.pooling.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert untrained == []
    ragged, padded = made["ragged"], made["padded"]
    torch.testing.assert_close(ragged.values, padded.values, rtol=1e-4, atol=1e-5)
    assert ragged.dim == model.embedding_dim
    assert (ragged.offsets is not None) == getattr(model.pooling, "multi_vector", False)
    assert ragged.offsets is None or torch.equal(ragged.offsets, padded.offsets)
    assert ragged.normalized != getattr(model.pooling, "as_is", False)
    alone = model.encode_embeddings(TEXTS, role="document", chunk_tokens=1)
    torch.testing.assert_close(alone.values, ragged.values.detach(), rtol=1e-4, atol=1e-5)
