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
gradients are known as soon as the loss is, and autograd only scales them (`_Attach`). Numbers are fp32 whatever autocast
says (fp64 for fp64 embeddings): at temperature 0.01 a bf16 logit is off by 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from embedtrain.losses.formulas import BlockRows, RowFormula
from embedtrain.losses.relation import RelationReader
from embedtrain.types import EmbeddingBatch

TERMS = ("q2d", "d2q", "q2q", "d2d")  # rows 2 columns: q = queries, d = documents; rows of d2* are positive documents

# Bytes of logits in hand at once, all terms together. The matrix products are slow on few rows: see benchmarks/.
TILE_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
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
    own hard negatives (term q2d). `tile_bytes`: memory for logits, by device if None; never changes the result.
    """
    queries, documents = _full(batch.queries.values), _full(batch.documents.values)
    scale = scale.to(queries)
    inputs = (queries, documents, scale)
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        sweep = _Sweep(*inputs, RelationReader(batch.relation), with_gradient, hard_only)
        start, stop, _ = batch.rows.indices(len(queries))
        sweep.sums["ignored"] += sweep.reader.num_ignored(start, stop)
        budget = (tile_bytes or TILE_BYTES[queries.device.type]) // queries.element_size()
        for first, last in sweep.blocks(start, stop, terms, budget):
            sweep.block(first, last, terms, formula, modifiers)
    loss = _Attach.apply(sweep.sums["loss"], sweep.gradients(), *inputs) if with_gradient else sweep.sums["loss"]
    return Sums(**{**sweep.sums, "loss": loss})


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Attach(torch.autograd.Function):
    """Joins a value to the graph of `inputs` by gradients that are known already."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        return None, None, *(g * gradient for g in ctx.saved_tensors)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one term in one block."""

    term: str
    numbers: Tensor  # [R] which queries or documents, CPU
    vectors: Tensor  # [R, E], times scale
    positive: Tensor  # [R] logit of the row's best positive


@dataclass(frozen=True, slots=True)
class _Stream:
    """One term of one block, between its log-sum-exp and its gradients."""

    rows: Tensor  # [R, E], times scale
    columns: Tensor | None  # [C] number of the document, CPU; None: all
    tile: Tensor  # [R, C] exp(logit - top)
    top: Tensor  # [R] largest logit, 0 where none
    logsumexp: Tensor  # [R]


class _Sweep:
    """Goes over blocks of queries and adds up the loss, its gradients and the sums."""

    def __init__(
        self, queries: Tensor, documents: Tensor, scale: Tensor, reader: RelationReader, gradient: bool, hard_only: bool
    ):
        self.vectors = {"q": queries, "d": documents}
        self.scale = scale
        self.reader = reader
        self.hard_only = hard_only
        self.d_vectors = {kind: torch.zeros_like(x) for kind, x in self.vectors.items()} if gradient else None
        self.sums = {name: queries.new_zeros(()) for name in Sums.__slots__}
        self._buffers: dict[str, Tensor] = {}

    def blocks(self, start: int, stop: int, terms: Sequence[str], budget: int) -> Iterator[tuple[int, int]]:
        """Ranges of queries with about `budget` logits, all terms together; at least one query each."""
        if self.hard_only:
            edges = [*range(start, stop, HARD_ONLY_QUERIES), stop]
        else:
            width = {kind: len(x) for kind, x in self.vectors.items()}
            per_query = sum(width[term[2]] for term in terms if term[0] == "q")
            per_pair = sum(width[term[2]] for term in terms if term[0] == "d")
            pairs = torch.bincount(self.reader.pair_query, minlength=width["q"])[start:stop]
            last_logit = torch.cumsum(per_query + per_pair * pairs, 0) - 1
            block = last_logit // max(budget, 1)
            edges = [start, *(torch.nonzero(block.diff()).flatten() + start + 1).tolist(), stop]
        yield from ((a, b) for a, b in pairwise(edges) if a < b)

    def block(
        self, first: int, last: int, terms: Sequence[str], formula: RowFormula, modifiers: Sequence[TileModifier]
    ) -> None:
        queries, documents = self.vectors["q"], self.vectors["d"]
        device = queries.device
        a, b = torch.searchsorted(self.reader.pair_query, torch.tensor([first, last])).tolist()
        pair_document = self.reader.pair_document[a:b].to(device, non_blocking=True)
        pair_query = (self.reader.pair_query[a:b] - first).to(device, non_blocking=True)  # within the block
        query_rows = queries[first:last] * self.scale
        answers = documents[pair_document]
        positive = (query_rows[pair_query] * answers).sum(-1)
        best = positive.new_full((last - first,), -math.inf).scatter_reduce(0, pair_query, positive, "amax")

        streams: dict[str, _Stream] = {}
        hardest: dict[str, Tensor] = {}
        for term in terms:
            if term[0] == "q":
                rows = _Rows(term, torch.arange(first, last), query_rows, best)
            else:
                rows = _Rows(term, self.reader.pair_document[a:b], answers * self.scale, positive)
            streams[term], hardest[term] = self.stream(rows, modifiers)

        with torch.enable_grad():
            negatives = {term: stream.logsumexp.requires_grad_() for term, stream in streams.items()}
            block = BlockRows(positive.requires_grad_(), pair_query, last - first, negatives)
            loss = formula(block).sum()
        measured = "q2d" if "q2d" in terms else terms[0]
        self.measure(block, loss.detach(), hardest[measured] if measured[0] == "d" else hardest[measured][pair_query])
        if self.d_vectors is None or positive.numel() == 0:
            return
        d_positive, *d_logsumexp = torch.autograd.grad(loss, [positive, *negatives.values()])

        by_pair = (d_positive * self.scale)[:, None]
        d_block = torch.zeros_like(query_rows).index_add_(0, pair_query, by_pair * answers)
        d_answers = by_pair * queries[first:last][pair_query]
        for (term, stream), d in zip(streams.items(), d_logsumexp, strict=True):
            d_rows = self.backward(term[2], stream, d)
            (d_block if term[0] == "q" else d_answers).add_(d_rows)
        self.d_vectors["q"][first:last] += d_block
        self.d_vectors["d"].index_add_(0, pair_document, d_answers)

    def stream(self, rows: _Rows, modifiers: Sequence[TileModifier]) -> tuple[_Stream, Tensor]:
        """Steps 1 to 3 for the rows of one term, and their hardest negative logits before modifiers, [R]."""
        picked, logits, hard = self.own_logits(rows) if self.hard_only else self.all_logits(rows)
        top = hardest = _top(logits)
        tile = Tile(rows.term, logits, self.scale, rows.positive, rows.numbers, picked, hard)
        for modifier in modifiers:
            self.sums["filtered"] += modifier(tile)
        if modifiers:
            top = _top(logits)
        shift = top.nan_to_num(neginf=0.0)  # a row without negatives: exp(-inf - 0) = 0, never -inf - -inf
        exponentials = logits.sub_(shift[:, None]).exp_()
        return _Stream(rows.vectors, picked, exponentials, shift, torch.log(exponentials.sum(1)) + shift), hardest

    def all_logits(self, rows: _Rows) -> tuple[None, Tensor, Tensor]:
        """Against all columns, with the relation's exceptions at -inf; and where the hard negatives stand."""
        columns = self.vectors[rows.term[2]]
        logits = torch.mm(rows.vectors, columns.T, out=self.buffer(rows.term, len(rows.vectors), len(columns)))
        row, column = self.reader.exceptions(rows.term, rows.numbers)
        logits.view(-1).index_fill_(0, self.to_device(row * len(columns) + column), -math.inf)
        if rows.term != "q2d":
            return None, logits, self.to_device(row[:0])
        row, column = self.reader.hard_negatives(rows.numbers)
        return None, logits, self.to_device(row * len(columns) + column)

    def own_logits(self, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Against the hard negatives of the block alone, with those of other rows at -inf."""
        row, document = self.reader.hard_negatives(rows.numbers)
        picked, column = torch.unique(document, return_inverse=True)
        hard = self.to_device(row * len(picked) + column)
        similar = torch.mm(rows.vectors, self.vectors["d"][self.to_device(picked)].T)
        logits = torch.full_like(similar, -math.inf)
        logits.view(-1)[hard] = similar.view(-1)[hard]
        return picked, logits, hard

    def backward(self, kind: str, stream: _Stream, gradient: Tensor) -> Tensor:
        """Step 5: adds to the gradient of the columns and returns that of the rows, [R, E]."""
        assert self.d_vectors is not None
        none = stream.logsumexp == -math.inf
        factor = (gradient * torch.exp(stream.top - stream.logsumexp.masked_fill(none, math.inf)))[:, None]
        vectors, d_vectors, scaled = self.vectors[kind], self.d_vectors[kind], stream.rows * factor
        if stream.columns is None:
            d_vectors.addmm_(stream.tile.T, scaled)
            return torch.mm(stream.tile, vectors).mul_(factor * self.scale)
        columns = self.to_device(stream.columns)
        d_vectors.index_add_(0, columns, torch.mm(stream.tile.T, scaled))
        return torch.mm(stream.tile, vectors[columns]).mul_(factor * self.scale)

    def measure(self, rows: BlockRows, loss: Tensor, hardest: Tensor) -> None:
        """Adds the block to the sums. `hardest`: largest negative logit of each pair [P], -inf where none."""
        positive = rows.positive.detach()
        self.sums["loss"] += loss
        self.sums["accuracy"] += rows.mean((positive > hardest).to(positive)).sum()
        self.sums["positive_similarity"] += rows.mean(positive).sum() / self.scale
        self.sums["hardest_negative_similarity"] += rows.mean(hardest.nan_to_num(neginf=0.0)).sum() / self.scale

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of queries, documents and scale."""
        assert self.d_vectors is not None
        # Every logit is scale * <row, column>, so the scale's gradient is half of what both sides' vectors get.
        both = sum(torch.dot(self.vectors[k].flatten(), d.flatten()) for k, d in self.d_vectors.items())
        return self.d_vectors["q"], self.d_vectors["d"], both / (2 * self.scale)

    def buffer(self, name: str, rows: int, columns: int) -> Tensor:
        """Room for logits [rows, columns], used again by every block: fresh pages cost more than the exponentials."""
        if name not in self._buffers or self._buffers[name].numel() < rows * columns:
            self._buffers[name] = self.vectors["q"].new_empty(rows * columns)
        return self._buffers[name][: rows * columns].view(rows, columns)

    def to_device(self, index: Tensor) -> Tensor:
        return index.to(self.scale.device, non_blocking=True)


def _top(logits: Tensor) -> Tensor:
    """The largest logit of each row [R]; -inf for a row without columns."""
    return logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -math.inf)
