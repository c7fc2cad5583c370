"""Late chunking (Guenther et al. 2024, arXiv:2409.04701): documents that are read as a whole and embedded chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import DataError
from embedtrain.types import RaggedTokens


def encode_chunks(
    tokenizer: TextTokenizer,
    documents: Sequence[Sequence[str]],
    *,
    order: Sequence[Sequence[int]] | None = None,
    source: str | Sequence[str] | None = None,
    max_lengths: Sequence[int | None] | None = None,
) -> RaggedTokens:
    """Tokens of N documents, each one text with a span for each of its chunks.

    Chunks are joined by the separator token, or by an empty line where the tokenizer has none; no chunk has the separator.

    order: for each document the places of its chunks in it (default: as they come); spans are in the order of the chunks.
    source, max_lengths: as in `TextTokenizer.encode`.

    Raises DataError for a chunk that lies beyond the maximum length: its document would be scored without it.
    """
    separator = tokenizer.hf.sep_token or "\n\n"
    prompts = tokenizer.around(len(documents), "document", source, None)
    places = order or [range(len(chunks)) for chunks in documents]
    joined = [
        _join(before, chunks, where, separator)
        for (before, _), chunks, where in zip(prompts, documents, places, strict=True)
    ]
    behind = [tokenizer.ids_behind(text) for _, text in prompts]
    limits = [limit or tokenizer.max_length["document"] for limit in max_lengths or [None] * len(documents)]
    encodings = tokenizer.encodings(
        [text for text, _ in joined], [limit - len(own) for limit, own in zip(limits, behind, strict=True)]
    )
    closed = [tokenizer.closed(encoding.ids, own) for encoding, own in zip(encodings, behind, strict=True)]
    tokens = RaggedTokens.from_lists(closed, role="document")
    spans = [
        [_span(encoding, *characters, limit) for characters in ranges]
        for encoding, (_, ranges), limit in zip(encodings, joined, limits, strict=True)
    ]
    counts = torch.tensor([len(one) for one in spans])
    flat = torch.tensor([span for one in spans for span in one], dtype=torch.int64)
    return replace(
        tokens,
        spans=flat + torch.repeat_interleave(tokens.offsets[:-1], counts)[:, None],
        span_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    )


def _join(
    prefix: str, chunks: Sequence[str], places: Sequence[int], separator: str
) -> tuple[str, list[tuple[int, int]]]:
    """One text of the chunks, each at its place, and the range of characters of each, in the order of `chunks`."""
    text, ranges = prefix, [(0, 0)] * len(chunks)
    for number, chunk in enumerate(sorted(range(len(chunks)), key=lambda n: places[n])):
        text += separator if number else ""
        ranges[chunk] = (len(text), len(text) + len(chunks[chunk]))
        text += chunks[chunk]
    return text, ranges


def _span(encoding: Any, start: int, end: int, limit: int) -> tuple[int, int]:
    """The tokens with characters of text[start:end]: from the first to behind the last."""
    special, offsets = encoding.special_tokens_mask, encoding.offsets
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and not special[i]]
    if not inside or (encoding.overflowing and max(last for _, last in offsets) < end):
        raise DataError(
            f"a chunk of a document lies beyond {limit} tokens, or has none: it would be scored without its text. Raise "
            "encoder.max_document_length, or cut the documents of the source."
        )
    return inside[0], inside[-1] + 1
