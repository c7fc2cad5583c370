"""Rows that a method reads, as batches, and the loss of a model on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from embedtrain.assemble import build_sources
from embedtrain.config.build import build
from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Sampler
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.losses.fit import fit
from embedtrain.types import EmbeddingBatch, Embeddings, RaggedTokens, TokenBatch, needs_of


def probe_batches(
    config: Mapping[str, Any], encoder: Encoder, *, samples: int, batch_size: int, seed: int
) -> list[TokenBatch]:
    """Batches of `batch_size` queries of a config's data, `samples` in all or what one epoch has; without teachers' inputs.

    The batches that a run of this batch size and seed would begin with.
    """
    data = config["data"]
    sampler = Sampler(
        Mixture(sources=build_sources(config), batching=data["batching"], exponent=data["exponent"]),
        seed=seed,
        global_batch_size=batch_size,
        num_positives=data["num_positives"],
        num_negatives=data["num_negatives"],
        sources_per_batch=data["sources_per_batch"],
    )
    loader = StepLoader(sampler=sampler, tokenizer=encoder.tokenizer, num_workers=0)
    return list(chain.from_iterable(loader.steps(0, min(len(loader), math.ceil(samples / batch_size)))))


def probe_loss(config: Mapping[str, Any], encoder: Encoder, *, owner: str) -> nn.Module:
    """The loss of a config, told the sizes of the encoder. What it would learn itself is as at its start.

    Raises ConfigError for one that reads a teacher, and for a config that trains by an objective.
    """
    if config["objective"]:
        raise ConfigError(f"{owner} trains by an objective, which contrasts nothing. Give a loss: loss=infonce")
    loss = build(config["loss"])
    teachers = needs_of(loss).teachers
    if teachers:
        raise ConfigError(
            f"{owner}: its loss reads a teacher ({', '.join(teachers)}). Give one that does not: loss=infonce"
        )
    sources = [name for name, node in config["data"]["sources"].items() if node is not None]
    fit(loss, encoder, teachers={}, sources=sources)
    return loss


def all_tokens(batch: TokenBatch) -> RaggedTokens:
    """Queries, then documents."""
    return RaggedTokens.cat([batch.queries, batch.documents])


def contrast(loss: nn.Module, embeddings: Embeddings, batch: TokenBatch) -> Tensor:
    """The loss of a batch, given the embeddings of `all_tokens`."""
    # Chunks of a document that was read as a whole are documents.
    texts = torch.arange(len(embeddings)).split([len(batch.queries.spans), len(batch.documents.spans)])
    queries, documents = (embeddings.select(side) for side in texts)
    relation = batch.relation.to(embeddings.values.device)
    return loss(EmbeddingBatch(queries=queries, documents=documents, relation=relation)).loss
