"""One step: token batches -> gradients. Plain training and GradCache are the same six lines of algebra.

    1. Cut all texts of the (micro-)batch into length-sorted chunks under a token budget.
    2. Encode each chunk. A kept chunk keeps its graph; a cached chunk runs without one and is thrown away.
    3. Gather the embeddings of all ranks, ask the loss, and go back as far as this rank's embeddings: their gradient.
    4. Send that gradient through the kept chunks; run each cached chunk again, with its graph, and send it through too.
    5. After the last micro-batch add the gradients of all ranks.

The gradient of the loss with respect to the parameters is the product of "loss by embeddings" and "embeddings by
parameters", so cutting the chain at the embeddings changes memory and never the result (Gao et al. 2021, arXiv:2101.06983).
It also means that a loss, a gather or a relation never sees which of the two ran.

An encoder that reads other documents in front of each text (`backbones/contextual.py`) has the chain cut once more, at the
vectors of these documents: they are encoded before everything else, in chunks of their own, every chunk of texts reads them, and
when all of those have gone backward what they want of the vectors goes back too (Morris and Rush 2024, arXiv:2410.02525).

Dropout is a function of (seed, step, micro-batch, rank, chunk): the generator is seeded before each chunk. So a cached
chunk replays its masks by construction, on every device, and a resumed run draws what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.data.chunking import chunks, divided
from embedtrain.data.context import choose, undivided
from embedtrain.errors import TrainingError
from embedtrain.sharding import passes
from embedtrain.types import EmbeddingBatch, Embeddings, LossOutput, RaggedTokens, Teacher, TokenBatch

_CONTEXT = -1  # in the seeds of context documents, where those of texts have the number of a chunk


@dataclass
class StepResult:
    """What a step measured, over all micro-batches and all ranks."""

    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class ContrastiveStep:
    """Gradients of the mean loss over the queries of one step, left in `.grad` of the encoder's and the loss's parameters.

    Args:
        encoder: ragged tokens -> Embeddings.
        loss: EmbeddingBatch -> LossOutput.
        chunk_tokens: tokens of one forward pass. Changes memory and speed, not the result (but see `seed`).
        cached_share: part of the chunks whose activations are dropped and computed again: 0.0 is plain training,
            1.0 full GradCache. Gradients are the same to the bit.
        seed: of dropout. Another `chunk_tokens` groups texts in another way and so draws other masks.
        autocast: makes the context of the encoder's forward passes (bf16, fp16); the loss always runs in fp32.
        scale: multiplies the loss before the backward (fp16 only).
        teachers: other models' embeddings of the same texts, by name, for losses that read them.
        gather: whether the loss sees the texts of all ranks; if not, that of the step is the mean of theirs over their queries.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        loss: nn.Module,
        chunk_tokens: int,
        cached_share: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        scale: Callable[[Tensor], Tensor] = lambda value: value,
        teachers: Mapping[str, Teacher] | None = None,
        gather: bool = True,
    ) -> None:
        self.encoder = encoder
        self.loss = loss
        self.chunk_tokens = chunk_tokens
        self.cached_share = cached_share
        self.seed = seed
        self.device = torch.device(device)
        self.autocast = autocast
        self.scale = scale
        self.teachers = dict(teachers or {})
        self.gather = gather
        # Sees the embeddings of each batch of this rank: queries and documents, without gradient.
        self.observe: Callable[[Embeddings, Embeddings, TokenBatch], None] | None = None
        self._replay_checked = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for module in (self.encoder, self.loss) for p in module.parameters() if p.requires_grad]

    def __call__(self, micro_batches: Sequence[TokenBatch], step: int) -> StepResult:
        """Raises TrainingError before any update when the loss is not finite, naming sources and rows."""
        result = self.add_gradients(micro_batches, step)
        distributed.sum_gradients(self.parameters)
        return result

    def add_gradients(self, micro_batches: Sequence[TokenBatch], step: int) -> StepResult:
        """The same without the sum over ranks: this rank's share is added to each gradient."""
        result = StepResult()
        for micro, batch in enumerate(micro_batches):
            output = self._backward(batch, step, micro)
            for name, value in _sum_shares(output).items():
                value *= batch.share
                if name == "loss":
                    result.loss += value
                else:
                    result.metrics[name] = result.metrics.get(name, 0.0) + value
        return result

    def _backward(self, batch: TokenBatch, step: int, micro: int) -> LossOutput:
        seeds = (self.seed, step, micro, distributed.rank())
        context = self._context(batch, seeds)
        texts = self._texts(batch, seeds, context)
        embeddings = texts.embeddings
        if self.observe is not None:
            queries, documents = _sides(embeddings, batch)
            self.observe(queries.map(Tensor.detach), documents.map(Tensor.detach), batch)
        output = self._loss(embeddings, batch, step, micro)
        self._refuse_non_finite(output, embeddings, batch, step)
        self.scale(output.loss * batch.share).backward()

        self._back(texts)
        if context is not None:  # whose gradient is whole now: every chunk of texts has read it
            self._back(context)
        return output

    def _texts(self, batch: TokenBatch, seeds: tuple[int, ...], context: _Pass | None) -> _Pass:
        """All texts of the batch, in front of which the encoder reads the context, where it has one."""
        tokens = RaggedTokens.cat([batch.queries, batch.documents])
        if context is None:
            return self._forward(tokens, self.encoder, seeds)
        encoder: Any = self.encoder
        leaf, places = context.embeddings.values, context.places
        return self._forward(tokens, lambda part: encoder(part, context=leaf[places]), seeds, encoder.tokens_in_front)

    def _context(self, batch: TokenBatch, seeds: tuple[int, ...]) -> _Pass | None:
        """The documents of this rank that the encoder reads in front of each text, each once; None where it reads none."""
        encoder: Any = self.encoder
        wanted: int = getattr(encoder, "num_context", 0)
        if not wanted:
            return None
        seeds = (*seeds, _CONTEXT)
        chosen, places = choose(len(batch.documents), wanted, seed=mix(*seeds)).unique(return_inverse=True)
        whole = undivided(batch.documents.select(chosen))
        return replace(self._forward(whole, encoder.encode_context, seeds), places=places)

    def _forward(
        self,
        tokens: RaggedTokens,
        encode: Callable[[RaggedTokens], Embeddings],
        seeds: tuple[int, ...],
        in_front: int = 0,
    ) -> _Pass:
        """Chunk by chunk. `in_front`: what the encoder reads beside the tokens of each text."""
        plan = self._plan(tokens.to(self.device), in_front)
        outputs = []
        for number, chunk in enumerate(plan):
            torch.manual_seed(mix(*seeds, number))
            with torch.set_grad_enabled(not chunk.cached), self.autocast():
                outputs.append(encode(chunk.tokens))
        return _Pass(encode, seeds, plan, outputs, _in_text_order(outputs, plan))

    def _plan(self, tokens: RaggedTokens, in_front: int) -> list[_Chunk]:
        """Longest chunks first, so that a batch that does not fit fails at once; the cached ones are the first.

        Where all ranks must make as many passes, chunks are halved; a rank that has too few texts reads some again for nothing.
        """
        pieces = chunks(tokens.lengths + in_front, self.chunk_tokens)
        count = passes(len(pieces), self.encoder)
        plan = [_chunk(tokens, texts) for texts in divided(pieces, count)]
        plan += [replace(plan[-1], index=torch.arange(0))] * (count - len(plan))
        cached = round(self.cached_share * len(plan))
        return [replace(chunk, cached=number < cached) for number, chunk in enumerate(plan)]

    def _back(self, texts: _Pass) -> None:
        """What their embeddings were given as gradient, through every chunk; a cached one runs again."""
        gradient = texts.embeddings.map(_gradient)
        for number, chunk in enumerate(texts.plan):
            first = texts.outputs[number]
            output = self._replay(texts, number) if chunk.cached else first
            _send_back(output, first.map(torch.zeros_like) if chunk.idle else gradient.select(chunk.index))
            texts.outputs[number] = first.map(Tensor.detach)  # lets go of the graph

    def _replay(self, texts: _Pass, number: int) -> Embeddings:
        torch.manual_seed(mix(*texts.seeds, number))
        first = texts.outputs[number]
        with self.autocast():
            again = texts.encode(texts.plan[number].tokens)
        if not self._replay_checked:
            # Once per run: a second pass that differs from the first gives a wrong gradient under a right loss.
            self._replay_checked = True
            pairs = zip(again.tensors(), first.tensors(), strict=True)
            difference = max((a.detach() - b).abs().max().item() for a, b in pairs if a.numel())
            if not difference <= 1e-2:
                raise TrainingError(
                    f"training.cached_share: the second pass over a chunk differs from the first by {difference:.3g} where 0 was "
                    "expected, so its gradient would be wrong. Something in the encoder draws random numbers from a "
                    "generator of its own or keeps state between calls; set training.cached_share=0."
                )
        return again

    def _loss(self, embeddings: Embeddings, batch: TokenBatch, step: int, micro: int) -> LossOutput:
        found = self._gathered if self.gather else self._alone
        return found(embeddings, batch, step, micro)

    def _alone(self, embeddings: Embeddings, batch: TokenBatch, step: int, micro: int) -> LossOutput:
        """Of this rank's texts, as its share of the mean over the queries of all ranks."""
        queries, documents = _sides(embeddings, batch)
        own = EmbeddingBatch(
            queries, documents, batch.relation.to(self.device), step=step, seed=mix(self.seed, step, micro)
        )
        taught = {
            name: replace(own, queries=Embeddings(q.to(self.device)), documents=Embeddings(d.to(self.device)))
            for name, (q, d) in self._vectors(batch)
        }
        output = self.loss(replace(own, teachers=taught))
        share = len(batch.queries) / float(distributed.sum_over_ranks(torch.tensor(float(len(batch.queries)))))
        # Ranks may have rows of other sources, and so other metrics: the sum over ranks wants the same of all.
        nothing = torch.zeros((), device=self.device)
        names = sorted(set().union(*distributed.gather_objects(list(output.metrics))))
        metrics = {name: share * output.metrics.get(name, nothing) for name in names}
        return replace(output, loss=share * output.loss, metrics=metrics)

    def _gathered(self, embeddings: Embeddings, batch: TokenBatch, step: int, micro: int) -> LossOutput:
        """Of all texts of all ranks, as this rank's share."""
        relation, queries, documents = distributed.gather_relation(batch.relation.to(self.device))
        own_queries, own_documents = _sides(embeddings, batch)
        first = sum(queries[: distributed.rank()])
        gathered = EmbeddingBatch(
            queries=distributed.gather_embeddings(own_queries, queries),
            documents=distributed.gather_embeddings(own_documents, documents),
            relation=relation,
            rows=slice(first, first + len(batch.queries)),
            step=step,
            seed=mix(self.seed, step, micro),
        )
        return self.loss(replace(gathered, teachers=self._taught(gathered, batch, queries, documents)))

    def _taught(
        self, batch: EmbeddingBatch, own: TokenBatch, queries: Sequence[int], documents: Sequence[int]
    ) -> dict[str, EmbeddingBatch]:
        """The batch as each teacher embeds it."""
        taught = {}
        for name, (q, d) in self._vectors(own):
            taught[name] = replace(
                batch,
                queries=Embeddings(distributed.gather_plain(q.to(self.device), queries)),
                documents=Embeddings(distributed.gather_plain(d.to(self.device), documents)),
            )
        return taught

    def _vectors(self, batch: TokenBatch) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Of this rank's queries and documents, by each teacher."""
        for name, teacher in self.teachers.items():
            yield name, teacher.embed(batch.teachers[name])

    def _refuse_non_finite(self, output: LossOutput, embeddings: Embeddings, batch: TokenBatch, step: int) -> None:
        if not distributed.any_rank(not bool(torch.isfinite(output.loss))):
            return
        in_query, in_document = (_non_finite(side) for side in _sides(embeddings, batch))
        bad_queries = set(torch.nonzero(in_query).flatten().tolist())
        bad_queries |= set(batch.relation.owner.cpu()[in_document].tolist())
        named = [batch.rows[q] or f"query {q}" for q in sorted(bad_queries)[:5]] if batch.rows else []
        found = [row for rows in distributed.gather_objects(named) for row in rows]
        sources = sorted({s for part in distributed.gather_objects(sorted(set(batch.sources))) for s in part if s})
        where = f"non-finite embeddings come from {', '.join(found[:5])}" if found else "all embeddings are finite"
        raise TrainingError(
            f"step {step}: the loss is not finite (sources in the batch: {', '.join(sources) or 'unnamed'}; {where}). "
            "No weight was changed by this step. A lower optim.learning_rate, a higher loss.temperature or "
            "training.mixed_precision=bf16 instead of fp16 are the usual remedies; the last checkpoint is intact."
        )


@dataclass(frozen=True)
class _Chunk:
    index: Tensor  # [n] which embeddings, CPU: one for each span of its texts; none of a chunk that is read for nothing
    tokens: RaggedTokens
    cached: bool = False

    @property
    def idle(self) -> bool:
        return not self.index.numel()


@dataclass
class _Pass:
    """Texts that were encoded: one cut of the chain rule."""

    encode: Callable[[RaggedTokens], Embeddings]
    seeds: tuple[int, ...]  # of the generator, together with the number of a chunk
    plan: list[_Chunk]
    outputs: list[Embeddings]  # of each chunk, with its graph where it is kept
    embeddings: Embeddings  # of all texts: leaves, which receive a gradient
    places: Tensor | None = None  # of context documents: which of the texts is where; one may come again


def _chunk(tokens: RaggedTokens, texts: Tensor) -> _Chunk:
    return _Chunk(tokens.spans_of(texts), tokens.select(texts))


def _in_text_order(outputs: list[Embeddings], plan: list[_Chunk]) -> Embeddings:
    """Embeddings of all chunks at the places of their texts, cut off from the graph, ready to receive a gradient."""
    places = torch.cat([chunk.index for chunk in plan])
    wanted = [output for output, chunk in zip(outputs, plan, strict=True) if not chunk.idle]
    together = Embeddings.cat([output.map(Tensor.detach) for output in wanted])
    return together.select(torch.argsort(places)).map(Tensor.requires_grad_)


def _sides(embeddings: Embeddings, batch: TokenBatch) -> tuple[Embeddings, Embeddings]:
    """(queries, documents) as the relation counts them: chunks of a document that was read as a whole are documents."""
    texts = torch.arange(len(embeddings)).split([len(batch.queries.spans), len(batch.documents.spans)])
    queries, documents = (embeddings.select(side) for side in texts)
    return queries, documents


def _gradient(values: Tensor) -> Tensor:
    """What the loss wants of these values; nothing, where it did not read them."""
    return torch.zeros_like(values) if values.grad is None else values.grad


def _send_back(output: Embeddings, gradient: Embeddings) -> None:
    """Through the graph of one chunk; a frozen encoder under a loss with parameters has none."""
    pairs = [(v, g.to(v.dtype)) for v, g in zip(output.tensors(), gradient.tensors(), strict=True) if v.requires_grad]
    if pairs:
        torch.autograd.backward([value for value, _ in pairs], [wanted for _, wanted in pairs])


def _non_finite(embeddings: Embeddings) -> Tensor:
    """Which texts have a number that is not finite, in any view; [N] bool, CPU."""
    bad = ~torch.isfinite(embeddings.values.detach()).all(dim=-1).cpu()
    if embeddings.offsets is not None:
        text = torch.repeat_interleave(torch.arange(len(embeddings)), embeddings.offsets.diff())
        bad = torch.zeros(len(embeddings), dtype=torch.bool).index_put_((text[bad],), torch.tensor(True))
    for view in embeddings.views.values():
        bad = bad | _non_finite(view)
    return bad


def _sum_shares(output: LossOutput) -> dict[str, float]:
    """Loss and metrics of the whole batch: every rank's shares, added, in one collective."""
    names = ["loss", *sorted(output.metrics)]
    values = torch.stack([output.loss.detach().float(), *(output.metrics[n].detach().float() for n in names[1:])])
    return dict(zip(names, distributed.sum_over_ranks(values).tolist(), strict=True))


def mix(*numbers: int) -> int:
    """One 63-bit seed from several small numbers (splitmix64 over each in turn)."""
    mask = 2**64 - 1
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
