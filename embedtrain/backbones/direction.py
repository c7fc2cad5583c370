"""Which way attention looks, proved by behaviour.

A library upgrade or an unlucky batch (one text, no padding) can turn a bidirectional decoder causal without a word; the
model trains on, and is worse. So nobody's word is taken: change the last token of a text, and the hidden state of its
first token must change exactly when attention is bidirectional.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from embedtrain.errors import TrainingError
from embedtrain.types import RaggedTokens

Direction = Literal["bidirectional", "causal"]

# Short, so that a sliding window cannot hide the last token from the first; one text alone and several of mixed length,
# since kernels take other paths when there is nothing to pad.
_PROBES = ((4,), (4, 4), (5, 2, 4, 3, 2))


def observed_direction(states: Callable[[RaggedTokens], Tensor], vocabulary: int) -> Direction:
    """The direction of `states(tokens) -> [S, H]`, the same on every probe, or a TrainingError that says where it is not."""
    seen: dict[Direction, tuple[int, ...]] = {}
    for lengths in _PROBES:
        seen.setdefault(_direction(states, lengths, vocabulary), lengths)
    if len(seen) > 1:
        cases = " but ".join(f"{name} for texts of {lengths} tokens" for name, lengths in seen.items())
        raise TrainingError(
            f"backbone: attention is {cases}. Its direction depends on the batch, so embeddings would too. "
            "Try backbone.kernel=padded or another version of transformers."
        )
    return next(iter(seen))


def _direction(states: Callable[[RaggedTokens], Tensor], lengths: tuple[int, ...], vocabulary: int) -> Direction:
    texts = [[(7 * text + 3 * i + 5) % vocabulary for i in range(length)] for text, length in enumerate(lengths)]
    changed = [text[:-1] + [(text[-1] + 1) % vocabulary] for text in texts]
    before, after = (RaggedTokens.from_lists(batch) for batch in (texts, changed))
    first = before.offsets[:-1]
    a, b = states(before)[first].float(), states(after)[first].float()
    moved = (a - b).abs().amax(1) > 1e-6 * a.abs().max()  # [N]; a causal first token stays the same to the bit
    if bool(moved.any()) != bool(moved.all()):
        raise TrainingError(
            f"backbone: for texts of {lengths} tokens, changing the last token moved the first hidden state of "
            f"{int(moved.sum())} of {len(lengths)} texts. Attention must be causal or bidirectional for all of them."
        )
    return "bidirectional" if bool(moved.all()) else "causal"
