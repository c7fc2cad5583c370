"""Which tokens are words, which of them are hidden, and what stands in their place."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError
from embedtrain.types import NO_TARGET, RaggedTokens


def words(tokens: RaggedTokens, special: Tensor) -> RaggedTokens:
    """The ids of the tokens that pooling may read and that are not special; NO_TARGET at the places of the others."""
    inside = torch.zeros(tokens.num_tokens + 1, dtype=torch.int64)
    inside.index_add_(0, tokens.spans.flatten(), torch.tensor([1, -1]).repeat(len(tokens)))
    is_word = (inside[:-1].cumsum(0) > 0) & ~torch.isin(tokens.ids, special)
    return replace(tokens, ids=torch.where(is_word, tokens.ids, NO_TARGET))


def count(labels: RaggedTokens) -> Tensor:
    """Predictions asked for in each text, [N]."""
    before = torch.cat([torch.zeros(1, dtype=torch.int64), (labels.ids != NO_TARGET).cumsum(0)])
    return before[labels.offsets[1:]] - before[labels.offsets[:-1]]


class Masker:
    """Hides a share of the words of each text.

    Of n words round(share * n) are hidden, at least one. Of the hidden ones the part `masked` becomes the mask token and
    the part `random` any token; the rest stays as it is and is predicted all the same (Devlin et al. 2018,
    arXiv:1810.04805, section 3.1). A text and a seed always give the same places.
    """

    def __init__(
        self, tokenizer: TextTokenizer, *, share: float, masked: float, random: float, mask_token: str | None
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"objective.share={share}: expected a part of the words, above 0 and at most 1.")
        if masked < 0 or random < 0 or masked + random > 1:
            raise ConfigError(
                f"objective.masked={masked}, objective.random={random}: parts of the hidden words, at most 1 in all."
            )
        self.share, self.masked, self.random = share, masked, random
        self.mask_id = _mask_id(tokenizer, mask_token)
        self.vocabulary = len(tokenizer.hf)
        self.special = special_ids(tokenizer)

    def __call__(
        self, tokens: RaggedTokens, seeds: Tensor, *, skip_first: bool = False
    ) -> tuple[RaggedTokens, RaggedTokens]:
        """(texts as the model reads them, labels: the hidden ids, NO_TARGET elsewhere), both at the places of `tokens`.

        skip_first: never hide a text's first token.
        """
        candidates = words(tokens, self.special).ids
        if skip_first:
            candidates[tokens.offsets[:-1]] = NO_TARGET
        read, labels = tokens.ids.clone(), torch.full_like(tokens.ids, NO_TARGET)
        bounds = tokens.offsets.tolist()
        for start, stop, seed in zip(bounds, bounds[1:], seeds.tolist(), strict=False):
            places = start + (candidates[start:stop] != NO_TARGET).nonzero().flatten()
            if places.numel():
                self._hide(read, labels, places, torch.Generator().manual_seed(seed))
        return replace(tokens, ids=read), replace(tokens, ids=labels)

    def _hide(self, read: Tensor, labels: Tensor, places: Tensor, generator: torch.Generator) -> None:
        hidden = max(1, round(self.share * places.numel()))
        chosen = places[torch.randperm(places.numel(), generator=generator)[:hidden]]
        fate = torch.rand(hidden, generator=generator, dtype=torch.float64)
        anything = torch.randint(self.vocabulary, (hidden,), generator=generator)
        labels[chosen] = read[chosen]
        changed = torch.where(fate < self.masked + self.random, anything, read[chosen])
        read[chosen] = torch.where(fate < self.masked, self.mask_id, changed)


def special_ids(tokenizer: TextTokenizer) -> Tensor:
    """Ids of the tokens that are no words."""
    return torch.tensor(sorted(tokenizer.hf.all_special_ids), dtype=torch.int64, device="cpu")


def _mask_id(tokenizer: TextTokenizer, mask_token: str | None) -> int:
    hf = tokenizer.hf
    if mask_token is None:
        if hf.mask_token_id is None:
            raise ConfigError(
                f"objective.mask_token: {type(hf).__name__} has no mask token of its own. Name a token of its vocabulary that "
                "means little; LLM2Vec takes objective.mask_token='_'."
            )
        return hf.mask_token_id
    known = hf.get_vocab().get(mask_token)
    ids = [known] if known is not None else hf.encode(mask_token, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(
            f"objective.mask_token={mask_token!r}: expected one token, but {type(hf).__name__} makes {len(ids)} of it."
        )
    return ids[0]
