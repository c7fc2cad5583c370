"""What a prompt puts behind every text, as an exported tokenizer does it: a part of its post-processor, known by its name."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

NAME = "prompt_end"  # of the part in tokenizer.json


def without_prompt_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer` as it was before a prompt's end was made a part of it: prompts are put around texts by us. In place."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.post_processor is None:
        return tokenizer
    state = json.loads(backend.to_str())
    found = False
    for part in state["post_processor"].get("processors", [state["post_processor"]]):
        if NAME in part.get("special_tokens", {}):
            found = True
            del part["special_tokens"][NAME]
            part["single"] = [piece for piece in part["single"] if piece.get("SpecialToken", {}).get("id") != NAME]
    if found:
        backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor
    return tokenizer
