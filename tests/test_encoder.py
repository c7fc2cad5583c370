"""Texts -> embeddings: order, modes, edges."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.pooling.mean import MeanPooling
from tests.helpers.models import minilm_dir

TEXTS = ["a cat", "the quick brown fox jumps over the lazy dog", "", "maps", "two words " * 40]


def encoder(folder, **options):
    backbone = TransformerBackbone(name=folder)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(), prompts=Prompts(), max_query_length=64, max_document_length=64, append_eos=False
    )
    return Encoder(backbone=backbone, pooling=MeanPooling(), tokenizer=tokenizer, **options)


def test_the_same_embeddings_as_sentence_transformers():
    reference = SentenceTransformer(minilm_dir(), device="cpu")
    reference.max_seq_length = 64
    ours = encoder(minilm_dir()).encode(TEXTS)
    torch.testing.assert_close(ours, reference.encode(TEXTS, convert_to_tensor=True), rtol=1e-4, atol=1e-5)
