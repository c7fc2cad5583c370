"""What a text is called in a store."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.types import Role, text_id


def text_keys(role: Role, prompts: Iterable[tuple[str, str]], texts: Iterable[str]) -> Ints:
    """[N] int64 >= 0: xxh3 of the role, of the prompt before the text and behind it, and of the text."""
    pairs = zip(prompts, texts, strict=True)
    return np.fromiter((text_id(_joined(role, *prompt, text)) for prompt, text in pairs), dtype=np.int64)


def _joined(role: Role, before: str, behind: str, text: str) -> str:
    parts = (role, before, text, behind) if behind else (role, before, text)
    return "\x00".join(parts)
