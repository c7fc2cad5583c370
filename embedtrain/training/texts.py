"""Texts of a run itself, for what is done with its finished model: proving the export, whitening, a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedtrain import distributed
from embedtrain.data.sources import Source
from embedtrain.encoder import Encoder
from embedtrain.whitening import fit_whitening

# Covariances of up to 4096 dimensions are well known by then.
_WHITENING_TEXTS = 20_000
_STRIDE = 7919  # a prime: every row of a source comes before one comes again


def texts_of(sources: Sequence[Source], count: int) -> list[str]:
    """Rows by turns of all sources, spread over each: of every row its query and its first positive."""
    texts: list[str] = []
    for number in range((count + 1) // 2):
        turn, which = divmod(number, len(sources))
        source = sources[which]
        example = source[(turn * _STRIDE) % len(source)]
        texts += [example.query, example.positives[0]]
    return texts[:count]


def read_context(encoder: Encoder, sources: Sequence[Source]) -> None:
    """Documents of the run's own data, for an encoder that reads some in front of each text: what its model folder will hold."""
    if encoder.num_context:
        encoder.set_context(texts_of(sources, 2 * encoder.num_context)[1::2])


def whiten(config: dict[str, Any], encoder: Encoder, sources: Sequence[Source]) -> None:
    """The projection that whitens, where `export.whiten_to` wants one: after training, so that no checkpoint knows of it."""
    dim = config["export"]["whiten_to"]
    if dim is None:
        return
    fit_whitening(encoder, texts_of(sources, min(_WHITENING_TEXTS, 2 * sum(len(source) for source in sources))), dim)
    if encoder.projection is not None:  # every rank has fitted the same; make them equal to the bit
        distributed.broadcast_tensors(encoder.projection.state_dict().values())
