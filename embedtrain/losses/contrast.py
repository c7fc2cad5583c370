"""The contrastive core: an exact softmax over in-batch and hard negatives in memory linear in the batch.

Every contrastive loss here is a *row formula* (formulas.py) over a few numbers per row: the logits of the positive pairs
and, for each term, the log-sum-exp of the row's negatives. Only that log-sum-exp touches Q x D pairs, so only it is
streamed:

    for a block of queries and their positive pairs
        1. logits of the block's rows against all columns of each term          one matrix product
        2. exceptions of the relation become -inf; modifiers mask or weigh      relation.py, modifiers.py
        3. log-sum-exp of each row; the logits turn into exp(logit - top) in place
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

import torch
from torch import Tensor

from embedtrain.losses.attach import attach
from embedtrain.losses.formulas import BlockRows, Pairs, RowFormula
from embedtrain.losses.relation import RelationReader
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
    positive: Tensor  # [R] logit of the row's best positive
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
    modifiers: Sequence[TileModifier] = (),
    hard_only: bool = False,
    tile_bytes: int | None = None,
) -> Sums:
    """The sum of the row formula over this rank's queries, with gradient, and sums for its metrics.

    `scale`: scalar, 1 / temperature; gets a gradient if it asks for one. `hard_only`: the only negatives are the query's
    own hard negatives (term q2d alone). `tile_bytes`: memory for logits, by device if None; never changes the result.
    """
    queries, documents = _full(batch.queries.values), _full(batch.documents.values)
    inputs = (queries, documents, scale.to(queries))
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if tile_bytes is None:
        tile_bytes = CPU_TILE_BYTES if queries.device.type == "cpu" else ACCELERATOR_TILE_BYTES
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        sweep = _Sweep(*inputs, RelationReader(batch.relation), terms, formula, modifiers, hard_only, with_gradient)
        start, stop, _ = batch.rows.indices(len(queries))
        for first, last in sweep.blocks(start, stop, tile_bytes):
            sweep.block(first, last)
        sums = sweep.sums | {"ignored": queries.new_tensor(sweep.reader.num_ignored(start, stop))}
    if with_gradient:
        sums["loss"] = attach(sums["loss"], sweep.gradients(), *inputs)
    return Sums(**sums)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of q2* or of d2* in one block."""

    numbers: Tensor  # [R] which queries or documents, CPU
    vectors: Tensor  # [R, E], times scale
    positive: Tensor  # [R] logit of the row's best positive


@dataclass(frozen=True, slots=True)
class _Stream:
    """One term of one block, between its log-sum-exp and its gradients."""

    rows: _Rows
    columns: Tensor | None  # [C] number of the document, CPU; None: all queries or documents
    hardest: Tensor  # [R] largest logit before modifiers, -inf where none
    exponentials: Tensor  # [R, C] exp(logit - shift)
    shift: Tensor  # [R]
    logsumexp: Tensor  # [R], -inf where none


class _Sweep:
    """Goes over blocks of queries and adds up the loss, its gradients and the sums."""

    def __init__(
        self,
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        reader: RelationReader,
        terms: Sequence[str],
        formula: RowFormula,
        modifiers: Sequence[TileModifier],
        hard_only: bool,
        with_gradient: bool,
    ):
        self.vectors = {"q": queries, "d": documents}
        self.scale = scale
        self.reader = reader
        self.terms = terms
        self.formula = formula
        self.modifiers = modifiers
        self.hard_only = hard_only
        self.d_vectors = {kind: torch.zeros_like(x) for kind, x in self.vectors.items()} if with_gradient else None
        self.sums = {name: queries.new_zeros(()) for name in Sums.__slots__}
        self._buffers: dict[str, Tensor] = {}

    def blocks(self, start: int, stop: int, tile_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of queries whose logits, all terms together, take about `tile_bytes`; at least one query each."""
        if self.hard_only:
            edges = [*range(start, stop, HARD_ONLY_QUERIES), stop]
        else:
            width = {kind: len(x) for kind, x in self.vectors.items()}
            per_query = sum(width[term[2]] for term in self.terms if term[0] == "q")
            per_pair = sum(width[term[2]] for term in self.terms if term[0] == "d")
            pairs = torch.bincount(self.reader.pair_query, minlength=width["q"])[start:stop]
            logits = torch.cumsum(per_query + per_pair * pairs, 0)  # up to and with each query
            block = (logits - 1) // max(1, tile_bytes // self.scale.element_size())
            edges = [start, *(torch.nonzero(block.diff()).flatten() + start + 1).tolist(), stop]
        yield from ((a, b) for a, b in pairwise(edges) if a < b)

    def block(self, first: int, last: int) -> None:
        a, b = torch.searchsorted(self.reader.pair_query, torch.tensor([first, last])).tolist()
        answers, query = self.reader.pair_document[a:b], self.reader.pair_query[a:b] - first
        pairs = Pairs(self.to_device(query), self.to_device(torch.bincount(query, minlength=last - first)))
        queries, documents = self.vectors["q"][first:last], self.vectors["d"][self.to_device(answers)]
        positive = (queries[pairs.query] * documents).sum(1) * self.scale
        rows = {
            "q": _Rows(torch.arange(first, last), queries * self.scale, pairs.largest(positive)),
            "d": _Rows(answers, documents * self.scale, positive),
        }
        streams = {term: self.stream(term, rows[term[0]]) for term in self.terms}

        with torch.enable_grad():
            negatives = {term: stream.logsumexp.requires_grad_() for term, stream in streams.items()}
            block = BlockRows(pairs, positive.requires_grad_(), negatives)
            loss = self.formula(block).sum()
        self.measure(block, loss.detach(), streams)
        if self.d_vectors is None or len(answers) == 0:
            return
        d_positive, *d_negatives = torch.autograd.grad(loss, [positive, *negatives.values()])

        d_positive = (d_positive * self.scale)[:, None]
        d_rows = {
            "q": torch.zeros_like(queries).index_add_(0, pairs.query, d_positive * documents),
            "d": d_positive * queries[pairs.query],
        }
        for (term, stream), gradient in zip(streams.items(), d_negatives, strict=True):
            d_rows[term[0]] += self.backward(term[2], stream, gradient)
        self.d_vectors["q"][first:last] += d_rows["q"]
        self.d_vectors["d"].index_add_(0, self.to_device(answers), d_rows["d"])

    def stream(self, term: str, rows: _Rows) -> _Stream:
        """Steps 1 to 3 for one term."""
        columns, logits, hard = self.own_logits(term, rows) if self.hard_only else self.all_logits(term, rows)
        top = hardest = _top(logits)
        tile = Tile(term, logits, self.scale, rows.positive, rows.numbers, columns, hard)
        for modifier in self.modifiers:
            self.sums["filtered"] += modifier(tile)
        if self.modifiers:
            top = _top(logits)
        shift = top.nan_to_num(neginf=0.0)  # a row without negatives: exp(-inf - 0) = 0, never -inf - -inf
        exponentials = logits.sub_(shift[:, None]).exp_()
        return _Stream(rows, columns, hardest, exponentials, shift, torch.log(exponentials.sum(1)) + shift)

    def all_logits(self, term: str, rows: _Rows) -> tuple[None, Tensor, Tensor]:
        """Against all columns, the relation's exceptions at -inf; and where the rows' own hard negatives stand."""
        columns = self.vectors[term[2]]
        logits = torch.mm(rows.vectors, columns.T, out=self.buffer(term, len(rows.numbers), len(columns)))
        row, column = self.reader.exceptions(term, rows.numbers)
        logits.view(-1).index_fill_(0, self.to_device(row * len(columns) + column), -math.inf)
        row, column = self.reader.hard_negatives(rows.numbers if term == "q2d" else rows.numbers[:0])
        return None, logits, self.to_device(row * len(columns) + column)

    def own_logits(self, term: str, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Against the hard negatives that the block brought, those of other rows at -inf."""
        row, document = self.reader.hard_negatives(rows.numbers)
        columns, column = torch.unique(document, return_inverse=True)
        hard = self.to_device(row * len(columns) + column)
        similar = torch.mm(rows.vectors, self.vectors["d"][self.to_device(columns)].T)
        logits = torch.full_like(similar, -math.inf)
        logits.view(-1)[hard] = similar.view(-1)[hard]
        return columns, logits, hard

    def backward(self, kind: str, stream: _Stream, gradient: Tensor) -> Tensor:
        """Step 5: adds to the gradient of the columns, which are queries or documents, and returns that of the rows."""
        assert self.d_vectors is not None
        none = stream.logsumexp == -math.inf
        factor = (gradient * torch.exp(stream.shift - stream.logsumexp.masked_fill(none, math.inf)))[:, None]
        rows = stream.rows.vectors * factor
        if stream.columns is None:
            self.d_vectors[kind].addmm_(stream.exponentials.T, rows)
            return torch.mm(stream.exponentials, self.vectors[kind]).mul_(factor * self.scale)
        columns = self.to_device(stream.columns)
        self.d_vectors[kind].index_add_(0, columns, torch.mm(stream.exponentials.T, rows))
        return torch.mm(stream.exponentials, self.vectors[kind][columns]).mul_(factor * self.scale)

    def measure(self, rows: BlockRows, loss: Tensor, streams: dict[str, _Stream]) -> None:
        """Adds the block to the sums; negatives are those of q2d, or of the first term where q2d is not asked for."""
        term = "q2d" if "q2d" in streams else self.terms[0]
        hardest = streams[term].hardest if term[0] == "d" else streams[term].hardest[rows.pairs.query]
        positive = rows.positive.detach()
        self.sums["loss"] += loss
        self.sums["accuracy"] += rows.pairs.mean((positive > hardest).to(positive)).sum()
        self.sums["positive_similarity"] += rows.pairs.mean(positive).sum() / self.scale
        self.sums["hardest_negative_similarity"] += rows.pairs.mean(hardest.nan_to_num(neginf=0.0)).sum() / self.scale

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of queries, documents and scale."""
        assert self.d_vectors is not None
        # Every logit is scale * <row, column>, so the scale's gradient is half of what both sides' vectors get.
        both = torch.stack([torch.dot(self.vectors[k].flatten(), d.flatten()) for k, d in self.d_vectors.items()]).sum()
        return self.d_vectors["q"], self.d_vectors["d"], both / (2 * self.scale)

    def buffer(self, term: str, rows: int, columns: int) -> Tensor:
        """Room for logits [rows, columns], used again by every block: fresh pages cost more than the exponentials."""
        if term not in self._buffers or self._buffers[term].numel() < rows * columns:
            self._buffers[term] = self.vectors["q"].new_empty(rows * columns)
        return self._buffers[term][: rows * columns].view(rows, columns)

    def to_device(self, index: Tensor) -> Tensor:
        return index.to(self.scale.device, non_blocking=True)


def _top(logits: Tensor) -> Tensor:
    """The largest logit of each row [R]; -inf for a row without columns."""
    return logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -math.inf)
