"""The records and protocols of a run. Read this first.

Shape letters, used everywhere:

    N texts   S tokens in all   T longest text   H hidden   E embedding   V vocabulary
    Q queries   D documents   K hard negatives per query   P positive pairs   W ranks

The way of the data:

    TrainingExample  --collate-->  TokenBatch  --Encoder, gather-->  EmbeddingBatch  --Loss-->  LossOutput

Two decisions shape these records. Texts are ragged: tokens are flat ids plus offsets, so there is no padding side, no
pad id and no mask to get wrong. And what a (query, document) pair *is* (positive, negative, hard negative, ignored) is
held once, as ids, in a `Relation`; a loss asks it and never guesses from positions or similarities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import xxhash
from torch import Tensor

from embedtrain.errors import ConfigError

Role = Literal["query", "document"]

NO_OWNER = -1
NO_LABEL = -1
NO_SOURCE = -1


def text_id(text: str) -> int:
    """The identity of a text: 63 bits of xxh3, so that equal texts are equal on every rank and in every run.

    At 10 million distinct texts the chance that any two collide is about 5e-6.
    """
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) >> 1


PART = "/"  # between the name of a table and that of a part of it, where each part is a source


def table_of(source: str) -> str:
    """The name under data.sources of a source: prompts and losses are chosen by it.

    >>> table_of("medi/fever"), table_of("pairs")
    ('medi', 'pairs')
    """
    return source.partition(PART)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingExample:
    """One row of data: the canonical form of every file format."""

    query: str
    positives: tuple[str, ...]  # at least one
    negatives: tuple[str, ...] = ()  # hard negatives: mined or supplied for this query
    scores: tuple[float, ...] | None = None  # a teacher's, aligned with positives + negatives
    instruction: str | None = None  # the task, where the row brings its own
    label: str | None = None  # class of the query and its positives, where the data has classes
    order: tuple[int, ...] | None = None  # positives + negatives are chunks of one document: the place of each in it
    source: str = ""  # name of the source in the mixture
    row: str = ""  # where it came from, for messages: "pairs.jsonl:17"


@dataclass(frozen=True, slots=True)
class RaggedTokens:
    """N texts as one flat run of token ids. Text n owns `ids[offsets[n]:offsets[n + 1]]`; no text is empty.

    `spans[n]` is the flat range of the tokens that pooling may read; it leaves out the instruction where that is asked.
    A document that is embedded chunk by chunk but read as a whole (late chunking) has a span for each chunk, and an encoder
    makes an embedding of each span.
    The last `unseen[n]` tokens of text n see the others and are seen by no token, not by themselves either: masks behind a query.
    `offsets` and `spans` always stay on the CPU, since shapes are made from them; `ids` travels to the device.
    """

    ids: Tensor  # [S] int64
    offsets: Tensor  # [N + 1] int64, CPU
    spans: Tensor  # [N, 2] int64, CPU
    is_query: Tensor | None = None  # [N] bool, CPU, for heads that treat roles differently; None: not known
    span_offsets: Tensor | None = None  # [N + 1] int64, CPU: whose spans they are; None: each text has one span
    unseen: Tensor | None = None  # [N] int64, CPU; None: every token is seen

    @classmethod
    def from_lists(
        cls,
        texts: Sequence[Sequence[int]],
        skip: Sequence[int] | None = None,
        role: Role | None = None,
        left_out: Sequence[int] | None = None,
    ) -> RaggedTokens:
        """`texts`: token ids of each. `skip`, `left_out`: tokens at its start and its end that pooling does not read."""
        lengths = torch.tensor([len(t) for t in texts], dtype=torch.int64)
        offsets = torch.zeros(len(texts) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        ids = torch.tensor([i for t in texts for i in t], dtype=torch.int64)
        spans = torch.stack([offsets[:-1], offsets[1:]], dim=1)
        if skip is not None:
            spans[:, 0] += torch.tensor(list(skip), dtype=torch.int64)
        if left_out is not None:
            spans[:, 1] -= torch.tensor(list(left_out), dtype=torch.int64)
        return cls(ids, offsets, spans, None if role is None else torch.full((len(texts),), role == "query"))

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, [N]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    def to(self, device: torch.device | str) -> RaggedTokens:
        return replace(self, ids=self.ids.to(device, non_blocking=torch.device(device).type != "cpu"))

    def select(self, index: Tensor) -> RaggedTokens:
        """The texts at `index` [M], in that order, as a new run."""
        index = index.cpu()
        lengths = self.lengths[index]
        offsets = torch.zeros(index.numel() + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        shift = self.offsets[index] - offsets[:-1]  # old flat position = new flat position + shift
        flat = torch.arange(int(offsets[-1])) + torch.repeat_interleave(shift, lengths)
        is_query = None if self.is_query is None else self.is_query[index]
        span_offsets = None
        if self.span_offsets is not None:
            counts = self.span_offsets.diff()[index]
            span_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            shift = torch.repeat_interleave(shift, counts)
        ids = self.ids[flat.to(self.ids.device)]
        unseen = None if self.unseen is None else self.unseen[index]
        spans = self.spans[self.spans_of(index)] - shift[:, None]
        return RaggedTokens(ids, offsets, spans, is_query, span_offsets, unseen)

    def spans_of(self, index: Tensor) -> Tensor:
        """The spans of the texts at `index` [M], CPU, in that order: what an encoder makes an embedding of each."""
        if self.span_offsets is None:
            return index
        counts = self.span_offsets.diff()[index]
        first = self.span_offsets[index] - (counts.cumsum(0) - counts)
        return torch.arange(int(counts.sum())) + torch.repeat_interleave(first, counts)

    def span_texts(self) -> Tensor:
        """The text of each span, CPU."""
        texts = torch.arange(len(self))
        return texts if self.span_offsets is None else torch.repeat_interleave(texts, self.span_offsets.diff())

    @staticmethod
    def cat(parts: Sequence[RaggedTokens]) -> RaggedTokens:
        """All texts of `parts`, one after the other."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.num_tokens)
        return RaggedTokens(
            torch.cat([part.ids for part in parts]),
            torch.cat(
                [torch.zeros(1, dtype=torch.int64)] + [p.offsets[1:] + s for p, s in zip(parts, starts, strict=False)]
            ),
            torch.cat([p.spans + s for p, s in zip(parts, starts, strict=False)]),
            None if any(p.is_query is None for p in parts) else torch.cat([p.is_query for p in parts]),  # type: ignore[misc]
            None if all(p.span_offsets is None for p in parts) else _span_offsets(parts),
            None if all(p.unseen is None for p in parts) else torch.cat([_unseen(p) for p in parts]),
        )


def _unseen(tokens: RaggedTokens) -> Tensor:
    return torch.zeros(len(tokens), dtype=torch.int64) if tokens.unseen is None else tokens.unseen


def _span_offsets(parts: Sequence[RaggedTokens]) -> Tensor:
    """Of all texts of `parts`, some of which have one span each."""
    counts = [torch.ones(len(p), dtype=torch.int64) if p.span_offsets is None else p.span_offsets.diff() for p in parts]
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])


@dataclass(frozen=True, slots=True)
class Relation:
    """What each (query, document) pair is, held as ids and never as a Q x D matrix.

    Document d was brought into the batch by query `owner[d]`, as a positive or as a hard negative. `known` lists, for
    each query, the ids of *all* documents known to answer it, also those that are not in this batch. From these:

        positive        owner[d] == q and is_positive[d]
        ignore          not that, yet document_ids[d] is among the known positives of q, or was brought as a positive by
                        a query with the same text: the same answer seen again, on this rank or another one (what is
                        known of a text is what all queries with that text know)
        hard negative   owner[d] == q and not is_positive[d], and not ignored
        negative        every other pair (in-batch and cross-device)

    Ids come from the data (`text_id`) and travel with the gather. Similarity is never used to find duplicates: under
    dropout equal texts have unequal embeddings.
    """

    query_ids: Tensor  # [Q] int64
    document_ids: Tensor  # [D] int64
    owner: Tensor  # [D] int64, row of the query that brought the document; NO_OWNER: none did (a memory of past ones)
    is_positive: Tensor  # [D] bool
    known_ids: Tensor  # [P'] int64, ids of known positives, query by query
    known_offsets: Tensor  # [Q + 1] int64
    scores: Tensor | None = None  # [D] fp32, a teacher's or an annotator's score of (owner[d], d); NaN: none
    labels: Tensor | None = None  # [Q] int64, class of the query and of its positives (`text_id`); NO_LABEL: none
    sources: Tensor | None = None  # [Q] int64, `text_id` of the source of each query

    @property
    def num_queries(self) -> int:
        return self.query_ids.numel()

    @property
    def num_documents(self) -> int:
        return self.document_ids.numel()

    def select(self, queries: Tensor) -> Relation:
        """The relation of `queries` [M], ascending, and of what they brought, as one of its own. See `brought_by`."""
        documents = self.brought_by(queries)
        counts = self.known_offsets.diff()[queries]
        known = torch.arange(int(counts.sum()), device=counts.device) + torch.repeat_interleave(
            self.known_offsets[queries] - (counts.cumsum(0) - counts), counts
        )
        place = torch.full_like(self.query_ids, NO_OWNER)
        place[queries] = torch.arange(queries.numel(), device=place.device)
        return Relation(
            query_ids=self.query_ids[queries],
            document_ids=self.document_ids[documents],
            owner=place[self.owner[documents]],
            is_positive=self.is_positive[documents],
            known_ids=self.known_ids[known],
            known_offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            scores=None if self.scores is None else self.scores[documents],
            labels=None if self.labels is None else self.labels[queries],
            sources=None if self.sources is None else self.sources[queries],
        )

    def brought_by(self, queries: Tensor) -> Tensor:
        """The documents that `queries` [M] brought, ascending."""
        return torch.nonzero(torch.isin(self.owner, queries)).flatten()

    def to(self, device: torch.device | str) -> Relation:
        later = torch.device(device).type != "cpu"  # a copy to the CPU that does not wait may be read too early
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{k: v.to(device, non_blocking=later) for k, v in fields.items() if v is not None})


@dataclass(frozen=True, slots=True)
class TeacherInput:
    """What a teacher needs to embed one micro-batch: tokens of its own, or vectors that a store already holds."""

    queries: RaggedTokens | Tensor  # of this rank; Tensor: [Q, E'] fp32
    documents: RaggedTokens | Tensor
    parts: tuple[TeacherInput, ...] = ()  # of a teacher that is made of several: what each of them needs, and no more


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """collate -> step: what one rank encodes for one (micro-)batch."""

    queries: RaggedTokens
    documents: (
        RaggedTokens  # query-major: the documents of query 0 (positives first, then hard negatives), of query 1, ...
    )
    relation: Relation  # of these queries and documents alone
    share: float = 1.0  # this micro-batch's part of the queries of its step, all ranks counted; weights its loss
    num_truncated: int = 0  # texts cut at the maximum length
    rows: tuple[str, ...] = ()  # where each query came from
    sources: tuple[str, ...] = ()  # source of each query
    numbers: tuple[int, ...] = ()  # row of each query in its source
    teachers: Mapping[str, TeacherInput] = field(default_factory=dict)  # by the teacher's name in the config


@dataclass(frozen=True, slots=True)
class Embeddings:
    """N texts as one vector each, [N, E]; or, where `offsets` are given, as one vector per token, [S, E].

    A chunk of a document that was read as a whole (late chunking) is a text here.

    `views` are the same texts embedded in further ways, by name: `layer_3`, `sparse`, `multi_vector`. Whatever happens
    to embeddings on their way (chunks, gather, selection) happens to their views as well.
    """

    values: Tensor  # [N, E]; multi-vector: [S, E]
    normalized: bool = True  # each vector has length 1
    offsets: Tensor | None = None  # [N + 1] int64, CPU: text n owns values[offsets[n]:offsets[n + 1]]; may be empty
    views: Mapping[str, Embeddings] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.values.shape[0] if self.offsets is None else self.offsets.numel() - 1

    @property
    def dim(self) -> int:
        return self.values.shape[-1]

    def truncate(self, dim: int) -> Embeddings:
        """The first `dim` of each vector (Matryoshka), back on the unit sphere where the full one was. Views stay."""
        if dim == self.dim:
            return self
        if dim > self.dim:
            raise ConfigError(f"cannot truncate embeddings of {self.dim} dimensions to {dim}. Use dims <= {self.dim}.")
        values = self.values[..., :dim]
        return replace(self, values=torch.nn.functional.normalize(values, dim=-1) if self.normalized else values)

    def view(self, name: str) -> Embeddings:
        """The same texts embedded in the way called `name`. Raises ConfigError where the encoder makes no such view."""
        if name not in self.views:
            raise ConfigError(
                f"the loss reads the view {name!r} of an embedding, but the encoder makes "
                f"{', '.join(map(repr, self.views)) or 'none'}. Add it under encoder.views."
            )
        return self.views[name]

    def select(self, index: Tensor) -> Embeddings:
        """The texts at `index` [M], CPU, in that order, with gradient."""
        rows, offsets = index, None
        if self.offsets is not None:
            lengths = self.offsets.diff()[index]
            offsets = torch.zeros(index.numel() + 1, dtype=torch.int64)
            torch.cumsum(lengths, 0, out=offsets[1:])
            rows = torch.arange(int(offsets[-1])) + torch.repeat_interleave(self.offsets[index] - offsets[:-1], lengths)
        values = self.values.index_select(0, rows.to(self.values.device, non_blocking=True))
        return Embeddings(values, self.normalized, offsets, {k: v.select(index) for k, v in self.views.items()})

    @staticmethod
    def cat(parts: Sequence[Embeddings]) -> Embeddings:
        """All texts of `parts`, which have the same views, one after the other."""
        first = parts[0]
        offsets = None
        if first.offsets is not None:
            lengths = torch.cat([part.offsets.diff() for part in parts if part.offsets is not None])
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        views = {name: Embeddings.cat([part.views[name] for part in parts]) for name in first.views}
        return Embeddings(torch.cat([part.values for part in parts]), first.normalized, offsets, views)

    def map(self, change: Callable[[Tensor], Tensor]) -> Embeddings:
        """`change` applied to the values, and to those of every view."""
        return replace(
            self, values=change(self.values), views={name: view.map(change) for name, view in self.views.items()}
        )

    def tensors(self) -> list[Tensor]:
        """The values, and those of every view, in one fixed order."""
        return [self.values, *(tensor for name in sorted(self.views) for tensor in self.views[name].tensors())]


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """step -> loss. Rows are this rank's queries; columns are everything that all ranks brought, rank by rank.

    `teachers`: by name, a batch with the same texts, relation and rows, as that teacher embeds them; without gradient.
    """

    queries: Embeddings  # [Q, E], all ranks
    documents: Embeddings  # [D, E], all ranks
    relation: Relation  # of all of them
    rows: slice = field(default_factory=lambda: slice(None))  # this rank's queries among `queries`
    teachers: Mapping[str, EmbeddingBatch] = field(default_factory=dict)
    step: int = 0  # updates made before this one, for schedules
    seed: int = 0  # of this micro-batch, the same on every rank, for losses that draw

    @property
    def num_rows(self) -> int:
        """Queries of this rank."""
        start, stop, _ = self.rows.indices(len(self.queries))
        return stop - start

    def truncate(self, dim: int) -> EmbeddingBatch:
        return replace(self, queries=self.queries.truncate(dim), documents=self.documents.truncate(dim))

    def view(self, name: str) -> EmbeddingBatch:
        """The batch as embedded in the way called `name`."""
        return replace(self, queries=self.queries.view(name), documents=self.documents.view(name))

    def select(self, queries: Tensor) -> EmbeddingBatch:
        """The batch of `queries` [M], ascending, and of the documents that they brought, on every rank alike."""
        start, stop, _ = self.rows.indices(len(self.queries))
        before = queries.cpu() < torch.tensor([[start], [stop]])
        return replace(
            self,
            queries=self.queries.select(queries.cpu()),
            documents=self.documents.select(self.relation.brought_by(queries).cpu()),
            relation=self.relation.select(queries),
            rows=slice(*before.sum(1).tolist()),
            teachers={name: teacher.select(queries) for name, teacher in self.teachers.items()},
        )

    def teacher(self, name: str) -> EmbeddingBatch:
        """The batch as the teacher called `name` embeds it. Raises ConfigError where the run has no such teacher."""
        if name not in self.teachers:
            raise ConfigError(
                f"the loss reads the teacher {name!r}, but the run has {', '.join(map(repr, self.teachers)) or 'none'}. "
                "Add it under teachers."
            )
        return self.teachers[name]

    def generator(self) -> torch.Generator:
        """A random generator on the CPU that every rank, and every repetition of this step, starts alike."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """loss -> step. Every number is this rank's *share*: added over ranks it is the value of the whole batch.

    A mean over queries is therefore (sum over this rank's rows) / (queries of all ranks). The step adds the shares up;
    no loss multiplies by the number of ranks.
    """

    loss: Tensor  # scalar
    metrics: dict[str, Tensor] = field(default_factory=dict)  # detached scalars


@runtime_checkable
class Backbone(Protocol):
    """Ragged tokens -> hidden states [S, H]. What happens inside (varlen attention, padding) never shows outside."""

    hidden_size: int

    def __call__(self, tokens: RaggedTokens) -> Tensor: ...


@runtime_checkable
class Pooling(Protocol):
    """Hidden states [S, H] of N texts -> one vector each, [N, H'], or `Embeddings` where that is not what it makes."""

    def __call__(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor | Embeddings: ...


@runtime_checkable
class Loss(Protocol):
    """Embeddings and their relation -> a scalar. Knows no model, no ranks and no log."""

    def __call__(self, batch: EmbeddingBatch) -> LossOutput: ...


@runtime_checkable
class Teacher(Protocol):
    """Another model's embeddings of the same texts, in two halves: one by one in the loader, together in the step."""

    @property
    def dim(self) -> int: ...

    def load(self, device: torch.device | str) -> None:
        """Reads what `embed` needs. Once per run, in the main process, before the first step."""
        ...

    def prepare(self, examples: Sequence[TrainingExample]) -> TeacherInput:
        """What `embed` needs of these rows; runs in worker processes. Documents query by query, positives first."""
        ...

    def embed(self, inputs: TeacherInput) -> tuple[Tensor, Tensor]:
        """Queries [Q, E'] and documents [D, E'], unit length, fp32, without gradient."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a loss reads besides dense embeddings and the relation. A loss says so in an attribute `needs`."""

    layers: tuple[int, ...] = ()  # the encoder makes the views layer_<n>; the last layer is the embedding itself
    views: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    scores: bool = False  # every row brings scores
    labels: bool = False  # every row brings a label
    embedding: Literal["multi_vector", "gaussian"] | None = None  # what pooling must make; None: any

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            layers=tuple(sorted({*self.layers, *other.layers})),
            views=tuple(sorted({*self.views, *other.views})),
            teachers=tuple(sorted({*self.teachers, *other.teachers})),
            scores=self.scores or other.scores,
            labels=self.labels or other.labels,
            embedding=self.embedding or other.embedding,
        )


def needs_of(loss: object) -> Needs:
    """What a loss and all losses inside it read."""
    total = Needs()
    for module in loss.modules() if isinstance(loss, torch.nn.Module) else [loss]:
        total |= getattr(module, "needs", Needs())
    return total


NO_TARGET = -100


@dataclass(frozen=True, slots=True)
class TokenTask:
    """What a token objective asks of N items, settled before any forward pass. An item is a text, or a pair of texts.

    Everything has one entry per item, so a task can be cut into chunks of items anywhere.
    """

    texts: Mapping[str, RaggedTokens]  # what is read, by its part in the objective
    labels: Mapping[
        str, RaggedTokens
    ]  # what is to be predicted, by term: its id or NO_TARGET at the place of each token
    targets: Mapping[str, Tensor]  # [N] int64, CPU: predictions asked for, by term
    seeds: Tensor  # [N] int64, CPU: of what is drawn in the forward pass
    rows: tuple[str, ...] = ()  # [N] where each item came from, for messages
    passes: int = 1  # how often the backbone reads each text

    def __len__(self) -> int:
        return self.seeds.numel()

    @property
    def lengths(self) -> Tensor:
        """Tokens that the backbone reads for each item, [N]."""
        return self.passes * torch.stack([tokens.lengths for tokens in self.texts.values()]).sum(0)

    def select(self, index: Tensor) -> TokenTask:
        """The items at `index` [M], CPU, in that order."""
        return TokenTask(
            {name: tokens.select(index) for name, tokens in self.texts.items()},
            {name: tokens.select(index) for name, tokens in self.labels.items()},
            {name: counts[index] for name, counts in self.targets.items()},
            self.seeds[index],
            tuple(self.rows[i] for i in index.tolist()) if self.rows else (),
            self.passes,
        )

    def to(self, device: torch.device | str) -> TokenTask:
        return replace(
            self,
            texts={name: tokens.to(device) for name, tokens in self.texts.items()},
            labels={name: tokens.to(device) for name, tokens in self.labels.items()},
        )

    @staticmethod
    def cat(parts: Sequence[TokenTask]) -> TokenTask:
        """All items of `parts`, which are of one objective, one after the other."""
        first = parts[0]
        return TokenTask(
            {name: RaggedTokens.cat([part.texts[name] for part in parts]) for name in first.texts},
            {name: RaggedTokens.cat([part.labels[name] for part in parts]) for name in first.labels},
            {name: torch.cat([part.targets[name] for part in parts]) for name in first.targets},
            torch.cat([part.seeds for part in parts]),
            tuple(row for part in parts for row in part.rows),
            first.passes,
        )


@runtime_checkable
class TokenObjective(Protocol):
    """Texts -> a scalar, for objectives that need token states and no contrast (masked tokens, reconstruction).

    The value of a step is a weighted sum of means over predictions,

        sum over terms t of   weights[t] * (sum over all predictions of t of its loss) / (number of predictions of t)

    with the predictions of all chunks, micro-batches and ranks in numerator and denominator, so that none of the three
    changes it. Hence two halves: `prepare` settles on the CPU what will be asked, as a pure function of the texts and
    `seed` (never of a rank or a chunk), and thereby the numbers of predictions; a call on any part of the items gives
    the sums.

    Its own parameters (heads, decoders) train beside the encoder's, are in checkpoints and are not exported.
    """

    weights: Mapping[str, float]
    trains: tuple[str, ...]  # the parts of the encoder that learn from it: backbone, pooling

    def prepare(self, batch: TokenBatch, seed: int) -> TokenTask: ...

    def __call__(self, encoder: Any, task: TokenTask) -> Mapping[str, Tensor]:
        """By term, the sum of the losses of its predictions: scalars, at least fp32."""
        ...
