"""Texts to ragged tokens: prompt, special tokens, truncation and what pooling may read, in one place.

The tokens of a text are those the Hugging Face tokenizer makes of `prompt + text`, with its special tokens around them,
cut on the right so that the special tokens survive. What the prompt has behind the text is tokenised by itself and stands
behind what is left of the text, before the special tokens: it is never cut and never joins the text, and an exported
tokenizer can add it. Nothing is padded.

Three things go wrong when they are spread over a code base, so they are done here and nowhere else:

1. The last token. With `append_eos` a text is cut at one token less than the maximum and the EOS token is put behind it,
   unless the tokenizer's own post-processing has put it there. Releases of one tokenizer differ in that; the result does not.
2. The prompt's tokens. Prompt and text are tokenised together, as the model will see them, and the border is found by
   character offsets. A token that holds characters of both belongs to the text.
3. Truncation is counted, not silent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from embedtrain.data.prompts import PLACEHOLDER, Prompts
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import RaggedTokens, Role

log = logging.getLogger(__name__)

# What a prompt's end is tokenised behind, to have the tokens that it has behind a text: one of these never joins it.
_ANCHORS = ("a", ".", "1", "\n")


class TextTokenizer:
    """Tokenises texts of one role at a time.

    tokenizer             a Hugging Face fast tokenizer
    prompts               what is put around each text
    max_query_length,
    max_document_length   tokens of a text with its prompt and special tokens
    append_eos            the last token of every text is EOS; for pooling that reads the last token
    query_augmentation    queries shorter than this many tokens are filled with [MASK] behind their end, as in ColBERT
                          (arXiv:2004.12832, section 3.2)
    attend_to_masks       whether tokens see these masks. In ColBERT's code and in PyLate none does, unless told to: a mask
                          then has a vector and is in nobody else's.
    closing_ids           by role, ids put behind every text, the last of it: learned tokens

    Raises ConfigError when the tokenizer is slow, has no EOS or no mask, or cannot fit one token of text into a maximum length.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        prompts: Prompts,
        max_query_length: int,
        max_document_length: int,
        append_eos: bool = False,
        query_augmentation: int | None = None,
        attend_to_masks: bool = True,
        closing_ids: Mapping[Role, Sequence[int]] | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} is a slow tokenizer and knows no character offsets. Convert it to a fast one "
                "(a tokenizer.json beside the weights)."
            )
        tokenizer.truncation_side = "right"  # cut on the left would cut the prompt; the export carries this too
        self.hf = tokenizer
        self.prompts = prompts
        self.max_length: dict[Role, int] = {"query": max_query_length, "document": max_document_length}
        self.append_eos = append_eos
        self.eos_id = self._find_eos() if append_eos else None
        self._appends_itself = append_eos and self._ids(["a"], 64)[0][-1:] == [self.eos_id]
        self._warned_prefixes: set[str] = set()
        self._ids_behind: dict[str, list[int]] = {"": []}
        self._num_closing = self._closing_special_tokens()
        self._num_special = len(self._ids(["a"], 64)[0]) - 1
        self.query_augmentation = query_augmentation
        self.attend_to_masks = attend_to_masks
        self.closing_ids: dict[Role, list[int]] = {role: list(ids) for role, ids in (closing_ids or {}).items()}
        for role, length in self.max_length.items():
            self.check_length(role, length)
        self._check_augmentation()

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        source: str | Sequence[str] | None = None,
        instructions: Sequence[str | None] | None = None,
        max_lengths: Sequence[int | None] | None = None,
    ) -> tuple[RaggedTokens, int]:
        """Tokens of N texts, and how many of the texts were cut at the maximum length.

        `source` is one name for all texts or one for each; `instructions` has one entry for each, and so has `max_lengths`,
        where None is the maximum of the role.

        Raises DataError for a text of which no token is left to pool, ConfigError for a prompt that fills the maximum.
        """
        prompts = self.around(len(texts), role, source, instructions)
        joined = [before + text for (before, _), text in zip(prompts, texts, strict=True)]
        if not joined:
            return RaggedTokens.from_lists([], role=role), 0
        closing = self.closing_ids.get(role, [])
        limits = [(limit or self.max_length[role]) - len(closing) for limit in max_lengths or [None] * len(joined)]
        behind = [self.ids_behind(text) for _, text in prompts]
        encodings = self.encodings(joined, [limit - len(own) for limit, own in zip(limits, behind, strict=True)])
        ids = [self.closed(encoding.ids, own) for encoding, own in zip(encodings, behind, strict=True)]
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        if not all(ids):
            raise DataError(f"the text {joined[ids.index([])]!r} has no token in this tokenizer. Remove the row.")
        skip = left_out = None
        if not self.prompts.pool_prompt and any(before for before, _ in prompts):
            skip = [
                self._prompt_tokens(before, text, encoding, len(one), f"max_{role}_length={limit}")
                for (before, _), text, encoding, one, limit in zip(prompts, joined, encodings, ids, limits, strict=True)
            ]
        unseen = None
        if role == "query" and self.query_augmentation is not None:
            masks = [max(0, self.query_augmentation - len(one)) for one in ids]
            ids = [one + [self.hf.mask_token_id] * count for one, count in zip(ids, masks, strict=True)]
            unseen = None if self.attend_to_masks else torch.tensor(masks)
        ids = [one + closing for one in ids]
        if not self.prompts.pool_prompt and any(behind):
            left_out = [
                self._left_out(encoding, one, own, skipped)
                for encoding, one, own, skipped in zip(encodings, ids, behind, skip or [0] * len(ids), strict=True)
            ]
        return replace(RaggedTokens.from_lists(ids, skip, role, left_out), unseen=unseen), truncated

    def around(
        self,
        count: int,
        role: Role,
        source: str | Sequence[str] | None,
        instructions: Sequence[str | None] | None,
    ) -> list[tuple[str, str]]:
        """What is put before and behind each of `count` texts; arguments as in `encode`."""
        sources = [source] * count if source is None or isinstance(source, str) else list(source)
        if instructions is None:
            instructions = [None] * count
        made: dict[tuple[str | None, str | None], tuple[str, str]] = {}  # few distinct ones among many texts
        for key in set(zip(sources, instructions, strict=True)):
            made[key] = self.prompts.around(role, source=key[0], instruction=key[1])
        return [made[key] for key in zip(sources, instructions, strict=True)]

    def encodings(self, texts: Sequence[str], limits: Sequence[int]) -> list[Any]:
        """The tokenizer's encoding of each text, cut at its own limit. Nearly always all limits are the same.

        Raises ConfigError for a limit with no room for a token of the text: an instruction behind it may be of any length.
        """
        encodings: list[Any] = [None] * len(texts)
        for limit in set(limits):
            at = [number for number, own in enumerate(limits) if own == limit]
            room = limit - 1 if self.append_eos and not self._appends_itself else limit
            if room <= self._num_special:
                raise ConfigError(
                    f"prompts: what stands behind {texts[at[0]][:40]!r} leaves {max(limit, 0)} tokens, which is no token of text "
                    "beside the special ones. Raise encoder.max_query_length, or shorten the instruction."
                )
            for number, encoding in zip(at, self._encode_batch([texts[n] for n in at], room).encodings, strict=True):
                encodings[number] = encoding
        return encodings

    def _encode_batch(self, texts: Sequence[str], max_length: int) -> Any:
        return self.hf(
            list(texts),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def _ids(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        return self._encode_batch(texts, max_length)["input_ids"]

    def ids_behind(self, text: str) -> list[int]:
        """The tokens of what a prompt puts behind a text: those that it has there, were it to join no token of the text.

        Raises ConfigError where there is no such thing, as with the middle of a word.
        """
        if text not in self._ids_behind:
            self._ids_behind[text] = self._tokens_behind(text)
        return self._ids_behind[text]

    def _tokens_behind(self, text: str) -> list[int]:
        for anchor in _ANCHORS:
            alone, both = (self.hf(t, add_special_tokens=False)["input_ids"] for t in (anchor, anchor + text))
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        raise ConfigError(
            f"prompts: {text!r} would stand behind texts, and its first character joins whatever is in front of it. Begin it "
            "with a blank, a line break or a mark."
        )

    def _closing_special_tokens(self) -> int:
        """How many the tokenizer itself puts behind a text."""
        mask = self._encode_batch(["a"], 64).encodings[0].special_tokens_mask
        return len(mask) if 0 not in mask else mask[::-1].index(0)

    def closed(self, ids: list[int], behind: Sequence[int] = ()) -> list[int]:
        """With `behind` at the end of the text, and EOS behind it all, exactly once."""
        end = len(ids) - self._num_closing
        ids = [*ids[:end], *behind, *ids[end:]]
        if not self.append_eos or (ids and ids[-1] == self.eos_id):
            return ids
        return [*ids, self.eos_id]  # type: ignore[list-item]

    def _prompt_tokens(self, prefix: str, text: str, encoding: Any, length: int, limit: str) -> int:
        """How many leading tokens belong to the prompt; the leading special token counts as one of them."""
        if not prefix:
            return 0
        border = len(prefix)
        special = encoding.special_tokens_mask
        for position, (_, end) in enumerate(encoding.offsets):
            if end > border and not special[position]:
                self._warn_of_joined_token(prefix, position)
                return position
        if encoding.overflowing:
            raise ConfigError(
                f"{limit} (of encoder, or of the source) is used up by the prompt {prefix!r}: no token of the text "
                f"{text[border : border + 40]!r} is left. Raise it or shorten the prompt."
            )
        # The tokenizer makes nothing of the text (control characters, say): what is behind the prompt is EOS or SEP.
        content = [position for position, is_special in enumerate(special) if not is_special]
        behind = content[-1] + 1 if content else 0
        if behind < length:
            return behind
        raise DataError(f"the text {text[border:]!r} has no token in this tokenizer. Remove the row.")

    def _left_out(self, encoding: Any, ids: list[int], behind: list[int], skipped: int) -> int:
        """How many tokens at the end are no text, where the prompt has some there; none where there is nothing else to pool."""
        if not behind:
            return 0
        content = len(encoding.ids) - self._num_closing
        return len(ids) - content if content > skipped else 0

    def _warn_of_joined_token(self, prefix: str, position: int) -> None:
        """Where tokenising the prompt alone counts otherwise, sentence-transformers will mask otherwise: say so, once."""
        if prefix in self._warned_prefixes:
            return
        self._warned_prefixes.add(prefix)
        alone = self._ids([prefix], 1 << 20)[0]
        count = len(alone) - (alone[-1] in self.hf.all_special_ids)
        if count != position:
            log.warning(
                "prompt %r: its last characters share a token with the text. Alone it has %d tokens, before a text %d. "
                "sentence-transformers leaves the first %d out of pooling, training leaves out %d. "
                "A prompt without a space at its end avoids this.",
                *(prefix, count, position, count, position),
            )

    def _find_eos(self) -> int:
        # BERT-like tokenizers have no EOS; their SEP is put at the end of every text and does its work.
        for token in (self.hf.eos_token_id, self.hf.sep_token_id):
            if token is not None:
                return token
        raise ConfigError(
            f"encoder.append_eos: {type(self.hf).__name__} has neither an EOS nor a SEP token. "
            "Set tokenizer.eos_token, or take a pooling that does not read the last token."
        )

    def check_length(self, role: Role, length: int, owner: str = "encoder") -> None:
        """Raises ConfigError where texts of this role cannot be cut at `length` tokens; `owner` is who says they should."""
        special = self._num_special + (self.append_eos and not self._appends_itself)
        special += len(self.closing_ids.get(role, []))
        finished = [text for text in self.prompts.behind(role) if PLACEHOLDER not in text]
        special += max((len(self.ids_behind(text)) for text in finished), default=0)
        if length <= special:
            raise ConfigError(
                f"{owner}.max_{role}_length={length} leaves no token for text beside {special} special tokens, what the "
                f"prompt has behind the text among them. Use at least {special + 1}; a usual value is 512."
            )
        if role == "query" and self.query_augmentation is not None and self.query_augmentation > length:
            raise ConfigError(
                f"encoder.query_augmentation={self.query_augmentation}: at most {owner}.max_query_length={length}. Raise that "
                "or lower this."
            )

    def _check_augmentation(self) -> None:
        if self.query_augmentation is None:
            if not self.attend_to_masks:
                raise ConfigError(
                    "encoder.attend_to_masks=false: queries are not filled with masks. Set encoder.query_augmentation, or this "
                    "to true."
                )
            return
        key = f"encoder.query_augmentation={self.query_augmentation}"
        if self.append_eos:
            raise ConfigError(
                f"{key}: the last token of a query would be [MASK] and not EOS, which the pooling reads. Set it to null."
            )
        if not self.prompts.pool_prompt and any(self.prompts.behind("query")):
            raise ConfigError(
                f"{key}: masks stand behind the text, and prompts.pool_prompt=false leaves out all that does. Set this to null, "
                "or that to true."
            )
        if self.closing_ids:
            raise ConfigError(f"{key}: queries end in learned tokens already, which the pooling reads. Set it to null.")
        if self.hf.mask_token_id is None:
            raise ConfigError(
                f"{key}: {type(self.hf).__name__} has no mask token to fill queries with. Set it to null."
            )
