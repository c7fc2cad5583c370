"""Spaces: how the queries and documents of a batch are compared, tile by tile, and the way back.

The cores (contrast.py, divergence.py) stream over tiles of similarities and know the gradient of each; a space turns both
ways between tiles and embeddings, so that no core knows what an embedding is:

    DenseSpace     s(q, d) = <q, d>: one vector per text; two products back
    MaxSimSpace    s(q, d) = sum over the query's tokens of the best <token, token> in the document: ColBERT's late
                   interaction (arXiv:2004.12832). Token products exist for a few documents at a time; only which
                   token was best is kept, two bytes per query token and document
    SumSpace       a weighted sum of spaces: BGE-M3's dense + sparse + multi-vector (arXiv:2402.03216)

A term says what rows and columns are (`q2d`: queries against documents). Similarities are symmetric: s(d, q) = s(q, d).
Every similarity is linear in the vectors of either side, so the gradient of a factor on all of them is known from
theirs (`homogeneous`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import full
from embedtrain.types import EmbeddingBatch, Embeddings

# Bytes of token products that MaxSim has in hand at once.
TOKEN_TILE_BYTES = 32 << 20
EMBEDDING = "embedding"  # in `views`: the embedding itself

Rows = slice | Tensor  # texts, by number; a Tensor lies on the CPU


class Space(Protocol):
    """Similarities of one batch and their gradients, which add up inside until `gradients` is asked for."""

    inputs: tuple[Tensor, ...]  # tensors of the graph; gradients come in this order
    count: Mapping[str, int]  # texts of each kind, q and d

    def tile(
        self, term: str, rows: Rows, columns: Tensor | None, scale: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """scale * similarities [R, C] of rows to columns (None: all of them), and what `tile_backward` wants to know."""
        ...

    def tile_backward(
        self, term: str, rows: Rows, columns: Tensor | None, saved: Any, weights: Tensor, factor: Tensor
    ) -> None:
        """Takes the gradient of the similarities, factor [R] * weights [R, C]; may overwrite `weights`."""
        ...

    def pairs(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Similarities [P] of queries [P] to documents [P]."""
        ...

    def pairs_backward(self, queries: Tensor, documents: Tensor, gradient: Tensor) -> None: ...

    def bytes_per_pair(self) -> float:
        """What a tile keeps in memory for one row and one column, the similarity itself included."""
        ...

    def gradients(self) -> tuple[Tensor, ...]: ...

    def homogeneous(self) -> Tensor:
        """The gradient of a common factor of all similarities, times that factor."""
        ...


def space_of(
    batch: EmbeddingBatch,
    views: Mapping[str, float] | None = None,
    query_tokens: Literal["sum", "mean"] = "sum",
) -> Space:
    """The space of a batch: its embeddings, or a weighted sum of `views` (`embedding` is the embedding itself).

    `query_tokens`: MaxSim adds up what the query's tokens find (ColBERT), or takes the mean (BGE-M3).
    """
    if not views:
        return _single(batch.queries, batch.documents, query_tokens)
    parts = []
    for name, weight in views.items():
        seen = batch if name == EMBEDDING else batch.view(name)
        parts.append((_single(seen.queries, seen.documents, query_tokens), weight))
    return parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else SumSpace(parts)


def _single(queries: Embeddings, documents: Embeddings, query_tokens: Literal["sum", "mean"]) -> Space:
    if queries.offsets is not None and documents.offsets is not None:
        return MaxSimSpace(
            queries.values, queries.offsets, documents.values, documents.offsets, mean=query_tokens == "mean"
        )
    if queries.offsets is not None or documents.offsets is not None:
        raise ConfigError("MaxSim compares token vectors with token vectors; one side has one vector per text.")
    return DenseSpace(queries.values, documents.values)


class DenseSpace:
    """Inner products of one vector per text, [Q, E] and [D, E]; sparse vectors over a vocabulary are such vectors too."""

    def __init__(self, queries: Tensor, documents: Tensor):
        self.inputs: tuple[Tensor, ...] = (full(queries), full(documents))
        self.vectors = {"q": self.inputs[0].detach(), "d": self.inputs[1].detach()}
        self.count: Mapping[str, int] = {kind: len(x) for kind, x in self.vectors.items()}
        self._d: dict[str, Tensor] | None = None

    def bytes_per_pair(self) -> float:
        return self.inputs[0].element_size()

    def tile(
        self, term: str, rows: Rows, columns: Tensor | None, scale: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        return torch.mm(self._take(term[0], rows) * scale, self._take(term[2], columns).T, out=out), None

    def tile_backward(
        self, term: str, rows: Rows, columns: Tensor | None, saved: Any, weights: Tensor, factor: Tensor
    ) -> None:
        factor = factor[:, None]
        row_gradient = torch.mm(weights, self._take(term[2], columns)).mul_(factor)
        scaled = self._take(term[0], rows) * factor
        if columns is None:
            self._gradient(term[2]).addmm_(weights.T, scaled)
        else:
            self._add(term[2], columns, torch.mm(weights.T, scaled))
        self._add(term[0], rows, row_gradient)

    def pairs(self, queries: Tensor, documents: Tensor) -> Tensor:
        return (self._take("q", queries) * self._take("d", documents)).sum(1)

    def pairs_backward(self, queries: Tensor, documents: Tensor, gradient: Tensor) -> None:
        self._add("q", queries, gradient[:, None] * self._take("d", documents))
        self._add("d", documents, gradient[:, None] * self._take("q", queries))

    def gradients(self) -> tuple[Tensor, ...]:
        return self._gradient("q"), self._gradient("d")

    def homogeneous(self) -> Tensor:
        # Both sides' vectors enter every similarity once, so each side's products add up to the whole.
        both = [torch.dot(x.flatten(), self._gradient(kind).flatten()) for kind, x in self.vectors.items()]
        return torch.stack(both).sum() / 2

    def _take(self, kind: str, which: Rows | None) -> Tensor:
        x = self.vectors[kind]
        if which is None:
            return x
        return x[which] if isinstance(which, slice) else x[which.to(x.device, non_blocking=True)]

    def _add(self, kind: str, which: Rows, gradient: Tensor) -> None:
        if isinstance(which, slice):
            self._gradient(kind)[which] += gradient
        else:
            self._gradient(kind).index_add_(0, which.to(gradient.device, non_blocking=True), gradient)

    def _gradient(self, kind: str) -> Tensor:
        if self._d is None:
            self._d = {name: torch.zeros_like(x) for name, x in self.vectors.items()}
        return self._d[kind]


class MaxSimSpace:
    """Late interaction of token vectors: query tokens [Sq, E] and document tokens [Sd, E], ragged.

    A query without tokens, and a document without tokens, has similarity 0 to everything.
    Cost: the products of all query tokens with all document tokens, twice more for the gradient.
    """

    def __init__(
        self, queries: Tensor, query_offsets: Tensor, documents: Tensor, document_offsets: Tensor, *, mean: bool = False
    ):
        self.inputs: tuple[Tensor, ...] = (full(queries), full(documents))
        self.tokens = {"q": self.inputs[0].detach(), "d": self.inputs[1].detach()}
        self.offsets = {"q": query_offsets.cpu(), "d": document_offsets.cpu()}
        self.lengths = {kind: x.diff() for kind, x in self.offsets.items()}
        self.count: Mapping[str, int] = {kind: len(x) for kind, x in self.lengths.items()}
        self.mean = mean
        self._d = {kind: torch.zeros_like(x) for kind, x in self.tokens.items()}

    def bytes_per_pair(self) -> float:
        return self.inputs[0].element_size() + 2 * self.lengths["q"].float().mean().item()

    def tile(
        self, term: str, rows: Rows, columns: Tensor | None, scale: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        left, right = self._sides(term, rows, columns)
        similar, best = self._late(left, right)
        logits = (similar if term[:1] == left[0] else similar.T) * scale
        return (logits if out is None else out.copy_(logits)), best

    def tile_backward(
        self, term: str, rows: Rows, columns: Tensor | None, saved: Any, weights: Tensor, factor: Tensor
    ) -> None:
        left, right = self._sides(term, rows, columns)
        gradient = weights * factor[:, None]
        self._late_backward(left, right, saved, gradient if term[:1] == left[0] else gradient.T)

    def pairs(self, queries: Tensor, documents: Tensor) -> Tensor:
        similar = self.inputs[0].new_zeros(len(queries))
        for group, q, d, weight in self._pair_groups(queries, documents):
            similar[group] = _aligned(self.tokens["q"][q], self.tokens["d"][d], weight)
        return similar

    def pairs_backward(self, queries: Tensor, documents: Tensor, gradient: Tensor) -> None:
        for group, q, d, weight in self._pair_groups(queries, documents):
            with torch.enable_grad():
                vectors = [self.tokens["q"][q].requires_grad_(), self.tokens["d"][d].requires_grad_()]
                similar = _aligned(vectors[0], vectors[1], weight)
            for kind, index, found in zip(
                "qd", (q, d), torch.autograd.grad(similar, vectors, gradient[group]), strict=True
            ):
                self._d[kind].index_add_(0, index.flatten(), found.flatten(0, 1))

    def gradients(self) -> tuple[Tensor, ...]:
        return self._d["q"], self._d["d"]

    def homogeneous(self) -> Tensor:
        return torch.stack([(x * self._d[kind]).sum() for kind, x in self.tokens.items()]).sum() / 2

    def _sides(self, term: str, rows: Rows, columns: Tensor | None) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        """The side whose tokens look (the queries, where there are any) and the side that they look at."""
        first = (term[0], _numbers(rows, self.count[term[0]]))
        second = (term[2], _numbers(columns, self.count[term[2]]))
        return (second, first) if term == "d2q" else (first, second)

    def _pair_groups(self, queries: Tensor, documents: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Pairs under the memory bound: their places [G], their query tokens [G, A] and document tokens [G, B], and what
        each query token counts [G, A]: 0 for one that only fills up, or where the document has no token."""
        device = self.inputs[0].device
        sides = {"q": queries.cpu(), "d": documents.cpu()}
        lengths = {kind: self.lengths[kind][texts] for kind, texts in sides.items()}
        order = torch.argsort(lengths["q"] * lengths["d"], descending=True, stable=True)
        order = order[: int((lengths["q"] * lengths["d"] > 0).sum())]
        for group in order.split(64):
            places, weight = [], None
            for kind in "qd":
                own = lengths[kind][group][:, None]
                place = torch.arange(int(own.max()))[None]
                places.append(
                    (self.offsets[kind][sides[kind][group]][:, None] + torch.minimum(place, own - 1)).to(device)
                )
                if weight is None:
                    weight = (place < own).to(self.inputs[0].dtype) / (own if self.mean else 1)
            assert weight is not None
            yield group.to(device), places[0], places[1], weight.to(device)

    def _late(self, left: tuple[str, Tensor], right: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Similarities [L, R] of texts `left` to texts `right`, and the best token [tokens of left, R] in each of them."""
        looking, text = self._tokens_of(left)
        tokens = self.tokens[left[0]][looking]
        best = torch.zeros(len(looking), len(right[1]), dtype=torch.int16, device=tokens.device)
        found = tokens.new_zeros(len(looking), len(right[1]))
        for group, index in self._groups(right, len(looking)):
            products = tokens @ self.tokens[right[0]][index.flatten()].T
            found[:, group], place = products.view(len(looking), *index.shape).max(dim=2)
            best[:, group] = place.to(torch.int16)
        similar = tokens.new_zeros(len(left[1]), len(right[1])).index_add_(
            0, text, found * self._weight(left)[text, None]
        )
        return similar, best

    def _late_backward(
        self, left: tuple[str, Tensor], right: tuple[str, Tensor], best: Tensor, gradient: Tensor
    ) -> None:
        looking, text = self._tokens_of(left)
        tokens = self.tokens[left[0]][looking]
        per_token = gradient[text] * self._weight(left)[text, None]
        d_tokens = torch.zeros_like(tokens)
        for group, index in self._groups(right, len(looking)):
            chosen = tokens.new_zeros(len(looking), *index.shape)
            chosen.scatter_(2, best[:, group].long()[..., None], per_token[:, group][..., None])
            flat, chosen = index.flatten(), chosen.flatten(1)
            d_tokens += chosen @ self.tokens[right[0]][flat]
            self._d[right[0]].index_add_(0, flat, chosen.T @ tokens)
        self._d[left[0]].index_add_(0, looking, d_tokens)

    def _tokens_of(self, side: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Flat token numbers of the side's texts, and which of them each belongs to."""
        kind, texts = side
        lengths = self.lengths[kind][texts]
        text = torch.repeat_interleave(torch.arange(len(texts)), lengths)
        before = lengths.cumsum(0) - lengths
        flat = torch.arange(len(text)) + (self.offsets[kind][texts] - before)[text]
        device = self.tokens[kind].device
        return flat.to(device), text.to(device)

    def _groups(self, side: tuple[str, Tensor], looking: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Texts of like length under the memory bound: their places [G] in the side, their tokens [G, T]. A shorter
        text repeats its last token, which changes no maximum; a text without tokens is left out."""
        kind, texts = side
        lengths = self.lengths[kind][texts]
        budget = max(1, TOKEN_TILE_BYTES // (self.inputs[0].element_size() * max(1, looking)))
        order = torch.argsort(lengths, descending=True, stable=True)[: int((lengths > 0).sum())]
        start = 0
        while start < len(order):
            longest = int(lengths[order[start]])
            group = order[start : start + max(1, budget // longest)]
            place = torch.minimum(torch.arange(longest)[None], lengths[group][:, None] - 1)
            device = self.tokens[kind].device
            yield group.to(device), (self.offsets[kind][texts[group]][:, None] + place).to(device)
            start += len(group)

    def _weight(self, side: tuple[str, Tensor]) -> Tensor:
        """What a found token counts, by text of the looking side."""
        lengths = self.lengths[side[0]][side[1]].clamp(min=1).to(self.inputs[0])
        return 1 / lengths if self.mean else torch.ones_like(lengths)


class SumSpace:
    """weight * similarity, summed over spaces of the same texts."""

    def __init__(self, parts: Sequence[tuple[Space, float]]):
        self.parts = list(parts)
        self.inputs: tuple[Tensor, ...] = tuple(tensor for space, _ in self.parts for tensor in space.inputs)
        self.count = self.parts[0][0].count

    def bytes_per_pair(self) -> float:
        return sum(space.bytes_per_pair() for space, _ in self.parts)

    def tile(
        self, term: str, rows: Rows, columns: Tensor | None, scale: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        tiles = [space.tile(term, rows, columns, scale * weight) for space, weight in self.parts]
        total = torch.stack([tile for tile, _ in tiles]).sum(0)
        return (total if out is None else out.copy_(total)), [saved for _, saved in tiles]

    def tile_backward(
        self, term: str, rows: Rows, columns: Tensor | None, saved: Any, weights: Tensor, factor: Tensor
    ) -> None:
        for (space, weight), kept in zip(self.parts, saved, strict=True):
            space.tile_backward(term, rows, columns, kept, weights, factor * weight)

    def pairs(self, queries: Tensor, documents: Tensor) -> Tensor:
        return torch.stack([weight * space.pairs(queries, documents) for space, weight in self.parts]).sum(0)

    def pairs_backward(self, queries: Tensor, documents: Tensor, gradient: Tensor) -> None:
        for space, weight in self.parts:
            space.pairs_backward(queries, documents, gradient * weight)

    def gradients(self) -> tuple[Tensor, ...]:
        return tuple(gradient for space, _ in self.parts for gradient in space.gradients())

    def homogeneous(self) -> Tensor:
        return torch.stack([space.homogeneous() for space, _ in self.parts]).sum()


def _aligned(queries: Tensor, documents: Tensor, weight: Tensor) -> Tensor:
    """MaxSim of G pairs: query tokens [G, A, E], document tokens [G, B, E], weights [G, A] -> [G]."""
    return (torch.bmm(queries, documents.transpose(1, 2)).amax(2) * weight).sum(1)


def _numbers(which: Rows | None, count: int) -> Tensor:
    if which is None:
        return torch.arange(count)
    return torch.arange(count)[which] if isinstance(which, slice) else which.cpu()
