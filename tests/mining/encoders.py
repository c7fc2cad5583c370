"""Tiny encoders for mining, built from a folder so that every rank can build the same."""

from __future__ import annotations

from typing import Any

import torch

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.pooling.mean import MeanPooling

TOKENS = ("append_eos", "query_augmentation", "attend_to_masks", "closing_ids")
HEAD = ("normalize", "projection_dim")


def encoder_of(
    folder: str, *, lengths=(16, 24), prompts: Prompts | None = None, pooling=None, **options: Any
) -> Encoder:
    """Of the model in `folder`, in evaluation mode; `options` go by name to tokenizer, encoder, or backbone."""
    given = {part: {name: options.pop(name) for name in names if name in options} for part, names in _PARTS.items()}
    torch.manual_seed(0)
    backbone = TransformerBackbone(name=folder, **options)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=prompts or Prompts(query="query: "),
        max_query_length=lengths[0],
        max_document_length=lengths[1],
        **given["tokens"],
    )
    return Encoder(backbone=backbone, pooling=pooling or MeanPooling(), tokenizer=tokenizer, **given["head"]).eval()


_PARTS = {"tokens": TOKENS, "head": HEAD}
