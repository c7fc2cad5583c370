"""The texts that an export is checked with, and what the encoder makes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from embedtrain.data.prompts import PLACEHOLDER, TEXT, Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.types import Embeddings, Role

ROLES: tuple[Role, Role] = ("query", "document")
_HARD = ("Straße, naïve, 東京タワー, 🙂 and 0.5 ≤ x", "two  spaces\nand\ta line", ".")
_LONGEST = 4096  # tokens; a text that fills more is not embedded just to be cut
_TASK = "find what answers the question"  # stands for the instruction where a prompt wants one


def probe_texts(probes: Sequence[str], tokenizer: TextTokenizer) -> tuple[list[str], list[str]]:
    """`probes` plus unicode, almost nothing, and a text beyond the maximum length; and notes on what was left out."""
    texts = [*probes, *_HARD]
    limit = max(tokenizer.max_length.values())
    if limit > _LONGEST:
        return texts, [f"Truncation at {limit} tokens was not part of the check: such a text is slow to embed twice."]
    words = " ".join(texts)
    per_copy = max(len(tokenizer.hf(words, add_special_tokens=False, verbose=False)["input_ids"]), 1)
    return [*texts, " ".join([words] * (limit // per_copy + 2))], []


def probe_prompts(prompts: Prompts) -> dict[Role, str | None]:
    """The prompt to pass by hand for each role, with the place of the text; None where the folder has one itself."""
    return {
        role: TEXT.join(prompts.around(role, instruction=_TASK)) if PLACEHOLDER in prompts.template(role) else None
        for role in ROLES
    }


def expected_embeddings(encoder: Encoder, texts: Sequence[str]) -> dict[Role, Embeddings]:
    """Embeddings of `texts` in each role, in float32 throughout, both roles cut at the longer maximum length."""
    view = copy.copy(encoder)  # the same modules; only tokenizer and precision are exchanged
    view.encode_dtype = None
    view.tokenizer = _one_length(encoder.tokenizer)
    prompts = encoder.tokenizer.prompts
    with full_precision(encoder):
        return {
            role: view.encode_embeddings(
                texts,
                role=role,
                instructions=[_TASK] * len(texts) if PLACEHOLDER in prompts.template(role) else None,
            )
            for role in ROLES
        }


def _one_length(tokenizer: TextTokenizer) -> TextTokenizer:
    longest = max(tokenizer.max_length.values())
    return TextTokenizer(
        tokenizer=tokenizer.hf,
        prompts=tokenizer.prompts,
        max_query_length=longest,
        max_document_length=longest,
        append_eos=tokenizer.append_eos,
        query_augmentation=tokenizer.query_augmentation,
        attend_to_masks=tokenizer.attend_to_masks,
        closing_ids=tokenizer.closing_ids,
    )


@contextmanager
def full_precision(module: nn.Module) -> Iterator[None]:
    """Half-precision weights as float32 inside, as they were outside (the way there and back loses nothing)."""
    halves = [p for p in module.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    dtypes = [p.dtype for p in halves]
    device = next(module.parameters()).device.type
    try:
        for parameter in halves:
            parameter.data = parameter.data.float()
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for parameter, dtype in zip(halves, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
