"""Whether texts can be cut where their sources say."""

from __future__ import annotations

from collections.abc import Mapping

from embedtrain.data.sources import Source
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError


def check_lengths(sources: Mapping[str, Source], tokenizer: TextTokenizer, longest_text: int | None) -> None:
    """Raises ConfigError for a length that leaves no room for text, or that is above `longest_text`, in tokens, which is what
    the backbone knows (None: no limit)."""
    for name, source in sources.items():
        for role, length in source.max_lengths.items():
            if length is None:
                continue
            tokenizer.check_length(role, length, f"data.sources.{name}")
            if longest_text is not None and length > longest_text:
                raise ConfigError(
                    f"data.sources.{name}.max_{role}_length={length}: the backbone knows {longest_text} positions. Use at most "
                    "that many."
                )
