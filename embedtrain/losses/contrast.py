"""The contrastive core: an exact softmax over in-batch and hard negatives in memory linear in the batch.

Every contrastive loss here is a *row formula* (formulas.py) over a few numbers per row: the logits of the positive pairs
and, for each term, the log-sum-exp of the row's negatives. Only that log-sum-exp touches Q x D pairs, so only it is
streamed:

    for a block of queries and their positive pairs
        1. logits of the block's rows against all columns of each term          similarity.py: one matrix product
        2. exceptions of the relation become -inf; modifiers mask or weigh      relation.py, modifiers/
        3. log-sum-exp of each row; the logits turn into exp(logit - top)       reductions.py, in place
        4. the row formula, differentiated by autograd: it sees [rows] numbers only
        5. gradient of the rows, and this block's share of that of the columns  two matrix products

A block holds whole rows, so nothing is computed twice: three products per term, the least that a forward and a backward
can take. (Inf-CL, arXiv:2410.17243, streams over columns too and recomputes the logits in the backward: four.) The
gradients are known as soon as the loss is, and autograd only scales them (attach.py). Numbers are fp32 whatever autocast
says (fp64 for fp64 embeddings): at temperature 0.01 a bf16 logit is off by 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from embedtrain.losses.attach import attach
from embedtrain.losses.formulas import BlockRows, Pairs, RowFormula
from embedtrain.losses.reductions import Reduced, Reduction, softmax
from embedtrain.losses.relation import RelationReader
from embedtrain.losses.similarity import Rows, Space, space_of
from embedtrain.types import EmbeddingBatch

TERMS = ("q2d", "d2q", "q2q", "d2d")  # rows 2 columns: q = queries, d = documents; rows of d2* are positive documents

# Bytes of logits in hand at once, all terms together. Fewer cost no exactness but speed: products want many rows.
CPU_TILE_BYTES = 64 << 20
ACCELERATOR_TILE_BYTES = 1 << 30
# Without in-batch negatives a block's columns are its own documents, and its work grows with the square of its queries.
HARD_ONLY_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of rows against the columns of one term: what a `TileModifier` reads and changes. No gradient flows here."""

    term: str
    logits: Tensor  # [R, C] similarity / temperature, changed in place; pairs that are no negatives are -inf
    scale: Tensor  # scalar, 1 / temperature
    positive: Tensor  # [R] logit of the row's best positive, no margin taken off
    weakest: Tensor  # [R] and of its worst
    rows: Tensor  # [R] number of the query (q2*) or document (d2*), CPU
    columns: Tensor | None  # [C] number of the document, CPU; None: all queries or documents in order
    hard: Tensor  # positions of the rows' own hard negatives in logits.view(-1)


# Changes `tile.logits` in place and returns how many pairs it took out by setting them to -inf.
TileModifier = Callable[[Tile], "int | Tensor"]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over this rank's queries, scalars. Each query counts once, whatever its number of positives."""

    loss: Tensor
    accuracy: Tensor  # positives above every negative, as the relation has them (before modifiers)
    positive_similarity: Tensor
    hardest_negative_similarity: Tensor  # 0 for a query without negatives
    ignored: Tensor  # documents that answer the query and were not brought by it
    filtered: Tensor  # pairs that modifiers took out


def contrast(
    batch: EmbeddingBatch,
    *,
    scale: Tensor,
    terms: Sequence[str],
    formula: RowFormula,
    space: Space | None = None,
    modifiers: Sequence[TileModifier] = (),
    hard_only: bool = False,
    margin: float = 0.0,
    reduction: Reduction = softmax,
    bias: Tensor | None = None,
    tile_bytes: int | None = None,
) -> Sums:
    """The sum of the row formula over this rank's queries, with gradient, and sums for its metrics.

    `scale`: scalar, 1 / temperature; gets a gradient if it asks for one. `space`: how texts are compared; None: by inner
    products of the batch's embeddings. `hard_only`: the only negatives are the query's own hard negatives (term q2d
    alone). `margin`: taken off the similarity of each positive pair. `reduction`: what becomes of a row's negatives.
    `bias`: scalar, added to every logit. `tile_bytes`: memory for logits, by device if None; never changes the result.
    """
    device = batch.queries.values.device
    if tile_bytes is None:
        tile_bytes = CPU_TILE_BYTES if device.type == "cpu" else ACCELERATOR_TILE_BYTES
    with torch.autocast(device.type, enabled=False):
        space = space_of(batch) if space is None else space
        inputs = (*space.inputs, scale.to(space.inputs[0]))
        if bias is not None:
            inputs = (*inputs, bias.to(space.inputs[0]))
        with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        with torch.no_grad():
            sweep = _Sweep(
                space=space,
                scale=scale.detach().to(space.inputs[0]),
                bias=None if bias is None else bias.detach().to(space.inputs[0]),
                reader=RelationReader(batch.relation),
                terms=terms,
                formula=formula,
                modifiers=modifiers,
                hard_only=hard_only,
                margin=margin,
                reduction=reduction,
                with_gradient=with_gradient,
            )
            start, stop, _ = batch.rows.indices(batch.relation.num_queries)
            for first, last in sweep.blocks(start, stop, tile_bytes):
                sweep.block(first, last)
            sums = sweep.sums | {"ignored": sweep.scale.new_tensor(sweep.reader.num_ignored(start, stop))}
        if with_gradient:
            sums["loss"] = attach(sums["loss"], sweep.gradients(), *inputs)
    return Sums(**sums)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of q2* or of d2* in one block."""

    numbers: Tensor  # [R] which queries or documents, CPU
    which: Rows  # the same, as a slice where they are neighbours
    positive: Tensor  # [R] logit of the row's best positive
    weakest: Tensor  # [R] and of its worst


@dataclass(frozen=True, slots=True)
class _Stream:
    """One term of one block, between its reduction and its gradients."""

    rows: _Rows
    columns: Tensor | None  # [C] number of the document, CPU; None: all queries or documents
    hardest: Tensor  # [R] largest logit before modifiers, -inf where none
    saved: Any  # the space's
    reduced: Reduced


@dataclass(kw_only=True)
class _Sweep:
    """Goes over blocks of queries and adds up the loss, its gradients and the sums."""

    space: Space
    scale: Tensor
    bias: Tensor | None
    reader: RelationReader
    terms: Sequence[str]
    formula: RowFormula
    modifiers: Sequence[TileModifier]
    hard_only: bool
    margin: float
    reduction: Reduction
    with_gradient: bool

    def __post_init__(self) -> None:
        self.sums = {name: self.scale.new_zeros(()) for name in Sums.__slots__}
        self._buffers: dict[str, Tensor] = {}
        self._d_bias = self.scale.new_zeros(())
        self._d_scale = self.scale.new_zeros(())  # beyond what comes through similarities

    def blocks(self, start: int, stop: int, tile_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of queries whose logits, all terms together, take about `tile_bytes`; at least one query each."""
        if self.hard_only:
            edges = [*range(start, stop, HARD_ONLY_QUERIES), stop]
        else:
            width = self.space.count
            per_query = sum(width[term[2]] for term in self.terms if term[0] == "q")
            per_pair = sum(width[term[2]] for term in self.terms if term[0] == "d")
            pairs = torch.bincount(self.reader.pair_query, minlength=width["q"])[start:stop]
            logits = torch.cumsum(per_query + per_pair * pairs, 0)  # up to and with each query
            block = (logits - 1) // max(1, int(tile_bytes / self.space.bytes_per_pair()))
            edges = [start, *(torch.nonzero(block.diff()).flatten() + start + 1).tolist(), stop]
        yield from ((a, b) for a, b in pairwise(edges) if a < b)

    def block(self, first: int, last: int) -> None:
        a, b = torch.searchsorted(self.reader.pair_query, torch.tensor([first, last])).tolist()
        answers, asking = self.reader.pair_document[a:b], self.reader.pair_query[a:b]
        query = asking - first
        pairs = Pairs(self.to_device(query), self.to_device(torch.bincount(query, minlength=last - first)))
        similarity = self.space.pairs(asking, answers)
        logit = self.shifted(similarity * self.scale)
        positive = logit - self.margin * self.scale
        rows = {
            "q": _Rows(torch.arange(first, last), slice(first, last), pairs.largest(logit), pairs.smallest(logit)),
            "d": _Rows(answers, answers, logit, logit),
        }
        streams = {term: self.stream(term, rows[term[0]]) for term in self.terms}

        with torch.enable_grad():
            negatives = {term: stream.reduced.statistic.requires_grad_() for term, stream in streams.items()}
            block = BlockRows(pairs, positive.requires_grad_(), negatives)
            loss = self.formula(block).sum()
        self.measure(block, similarity, loss.detach(), streams)
        if not self.with_gradient or len(answers) == 0:
            return
        d_positive, *d_negatives = torch.autograd.grad(
            loss, [positive, *negatives.values()], allow_unused=True, materialize_grads=True
        )
        self.space.pairs_backward(asking, answers, d_positive * self.scale)
        self._d_bias += d_positive.sum()
        self._d_scale -= self.margin * d_positive.sum()
        for (term, stream), gradient in zip(streams.items(), d_negatives, strict=True):
            self.backward(term, stream, gradient)

    def stream(self, term: str, rows: _Rows) -> _Stream:
        """Steps 1 to 3 for one term."""
        columns, logits, saved, hard = self.own_logits(term, rows) if self.hard_only else self.all_logits(term, rows)
        top = hardest = _top(logits)
        tile = Tile(term, logits, self.scale, rows.positive, rows.weakest, rows.numbers, columns, hard)
        for modifier in self.modifiers:
            self.sums["filtered"] += modifier(tile)
        if self.modifiers:
            top = _top(logits)
        return _Stream(rows, columns, hardest, saved, self.reduction(logits, top))

    def all_logits(self, term: str, rows: _Rows) -> tuple[None, Tensor, Any, Tensor]:
        """Against all columns, the relation's exceptions at -inf; and where the rows' own hard negatives stand."""
        width = self.space.count[term[2]]
        out = self.buffer(term, len(rows.numbers), width)
        logits, saved = self.space.tile(term, rows.which, None, self.scale, out)
        logits = self.shifted(logits)
        row, column = self.reader.exceptions(term, rows.numbers)
        logits.view(-1).index_fill_(0, self.to_device(row * width + column), -math.inf)
        row, column = self.reader.hard_negatives(rows.numbers if term == "q2d" else rows.numbers[:0])
        return None, logits, saved, self.to_device(row * width + column)

    def own_logits(self, term: str, rows: _Rows) -> tuple[Tensor, Tensor, Any, Tensor]:
        """Against the hard negatives that the block brought, those of other rows at -inf."""
        row, document = self.reader.hard_negatives(rows.numbers)
        columns, column = torch.unique(document, return_inverse=True)
        hard = self.to_device(row * len(columns) + column)
        similar, saved = self.space.tile(term, rows.which, columns, self.scale)
        logits = torch.full_like(similar, -math.inf)
        logits.view(-1)[hard] = self.shifted(similar.reshape(-1)[hard])
        return columns, logits, saved, hard

    def backward(self, term: str, stream: _Stream, gradient: Tensor) -> None:
        """Step 5: the gradients of a term's rows and columns."""
        factor, weights = gradient * stream.reduced.factor, stream.reduced.weights
        if self.bias is not None:
            self._d_bias += torch.dot(factor, weights.sum(1))
        self.space.tile_backward(term, stream.rows.which, stream.columns, stream.saved, weights, factor * self.scale)

    def measure(self, rows: BlockRows, similarity: Tensor, loss: Tensor, streams: dict[str, _Stream]) -> None:
        """Adds the block to the sums; negatives are those of q2d, or of the first term where q2d is not asked for."""
        term = "q2d" if "q2d" in streams else self.terms[0]
        hardest = streams[term].hardest if term[0] == "d" else streams[term].hardest[rows.pairs.query]
        if self.bias is not None:
            hardest = hardest - self.bias
        hardest = hardest / self.scale
        self.sums["loss"] += loss
        self.sums["accuracy"] += rows.pairs.mean((similarity > hardest).to(similarity)).sum()
        self.sums["positive_similarity"] += rows.pairs.mean(similarity).sum()
        self.sums["hardest_negative_similarity"] += rows.pairs.mean(hardest.nan_to_num(neginf=0.0)).sum()

    def gradients(self) -> tuple[Tensor, ...]:
        """Of the space's inputs, the scale, and the bias if there is one."""
        # Every logit is scale * similarity (- margin * scale + bias).
        d_scale = self.space.homogeneous() / self.scale + self._d_scale
        return (*self.space.gradients(), d_scale, *(() if self.bias is None else (self._d_bias,)))

    def shifted(self, logits: Tensor) -> Tensor:
        return logits if self.bias is None else logits.add_(self.bias)

    def buffer(self, term: str, rows: int, columns: int) -> Tensor:
        """Room for logits [rows, columns], used again by every block: fresh pages cost more than the exponentials."""
        if term not in self._buffers or self._buffers[term].numel() < rows * columns:
            self._buffers[term] = self.scale.new_empty(rows * columns)
        return self._buffers[term][: rows * columns].view(rows, columns)

    def to_device(self, index: Tensor) -> Tensor:
        return index.to(self.scale.device, non_blocking=True)


def _top(logits: Tensor) -> Tensor:
    """The largest logit of each row [R]; -inf for a row without columns."""
    return logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -math.inf)
