"""What a text is called in a store."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.types import Role, text_id


def text_keys(role: Role, prefixes: Iterable[str], texts: Iterable[str]) -> Ints:
    """[N] int64 >= 0: xxh3 of the role, the prompt in front of the text, and the text."""
    pairs = zip(prefixes, texts, strict=True)
    return np.fromiter((text_id(f"{role}\x00{prefix}\x00{text}") for prefix, text in pairs), dtype=np.int64)
