"""The promise of the project: ranks x cached chunks x chunk sizes x packing give the gradient of one process on the whole batch.

The reference is plain autograd through the encoder and the loss on all texts at once: no chunks, no cut, no gather.
Every loss that has a YAML takes part by having it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from embedtrain import distributed
from embedtrain.errors import TrainingError
from embedtrain.training.step import ContrastiveStep, mix
from embedtrain.types import EmbeddingBatch, Embeddings, LossOutput, RaggedTokens, Relation, TokenBatch, text_id
from tests.helpers.ranks import run_ranks


class BagEncoder(nn.Module):
    """A small encoder with dropout whose texts do not depend on each other: embeddings, a layer, a mean, a norm."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: RaggedTokens) -> Embeddings:
        hidden = self.dropout(torch.tanh(self.layer(self.embedding(tokens.ids))))
        means = [hidden[a:b].mean(0) for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
        return Embeddings(nn.functional.normalize(torch.stack(means), dim=-1))


class NaiveInfoNCE(nn.Module):
    """The formula, by loops, as a share: the step is tested apart from the project's own losses."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        relation = batch.relation
        total = batch.queries.values.new_zeros(())
        for q in range(*batch.rows.indices(len(batch.queries))):
            similarity = batch.documents.values @ batch.queries.values[q] * self.log_scale.exp()
            own = (relation.owner == q) & relation.is_positive
            known = relation.known_ids[relation.known_offsets[q] : relation.known_offsets[q + 1]]
            keep = own | ~torch.isin(relation.document_ids, known)
            total = total + torch.logsumexp(similarity[keep], 0) - similarity[own].mean()
        share = total / len(batch.queries)
        return LossOutput(share, {"loss_again": share.detach()})


def make_batch(num_queries: int, *, num_negatives: int = 2, seed: int = 0, first: int = 0) -> TokenBatch:
    """Queries with one positive and some hard negatives of ragged lengths. Query i is the same whatever the batch."""
    queries, documents, owner, positive, document_ids, known = [], [], [], [], [], []
    for i in range(first, first + num_queries):
        draw = torch.Generator().manual_seed(1000 * seed + i)

        def text(generator=draw):
            length = int(torch.randint(1, 9, (), generator=generator))
            return torch.randint(0, 50, (length,), generator=generator).tolist()

        queries.append(text())
        for k in range(1 + num_negatives - i % 2):  # not all have the same number
            documents.append(text())
            owner.append(i - first)
            positive.append(k == 0)
            # Every third query shares its positive's text with the first one: a duplicate to be left out.
            name = "shared" if k == 0 and i % 3 == 0 else f"{i}/{k}"
            document_ids.append(text_id(name))
        known.append(document_ids[-(1 + num_negatives - i % 2)])
    relation = Relation(
        query_ids=torch.tensor([text_id(f"q{i}") for i in range(first, first + num_queries)]),
        document_ids=torch.tensor(document_ids),
        owner=torch.tensor(owner),
        is_positive=torch.tensor(positive),
        known_ids=torch.tensor(known),
        known_offsets=torch.arange(num_queries + 1),
    )
    rows = tuple(f"toy:{i}" for i in range(first, first + num_queries))
    return TokenBatch(
        RaggedTokens.from_lists(queries),
        RaggedTokens.from_lists(documents),
        relation,
        rows=rows,
        sources=("toy",) * num_queries,
    )


def reference_gradient(encoder: nn.Module, loss: nn.Module, batch: TokenBatch) -> tuple[float, list[torch.Tensor]]:
    embeddings = encoder(RaggedTokens.cat([batch.queries, batch.documents])).values
    n = len(batch.queries)
    output = loss(EmbeddingBatch(Embeddings(embeddings[:n]), Embeddings(embeddings[n:]), batch.relation, slice(0, n)))
    parameters = [p for m in (encoder, loss) for p in m.parameters() if p.requires_grad]
    return float(output.loss), [g.detach() for g in torch.autograd.grad(output.loss, parameters)]


def gradients(step: ContrastiveStep) -> list[torch.Tensor]:
    return [p.grad.detach().clone() for p in step.parameters]


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> tuple[float, float]:
    """(norm ratio, cosine) of the whole gradient."""
    a, b = (torch.cat([g.double().flatten() for g in part]) for part in (found, expected))
    return float(a.norm() / b.norm()), float(torch.dot(a, b) / (a.norm() * b.norm()))


def run_step(cached_share: float, chunk_tokens: int, micro: int, sizes: list[int], dropout: float = 0.0):
    """What one rank does: its slice of the batch, cut into micro-batches."""
    rank = distributed.rank()
    encoder, loss = BagEncoder(dropout), NaiveInfoNCE()
    step = ContrastiveStep(encoder=encoder, loss=loss, chunk_tokens=chunk_tokens, cached_share=cached_share, seed=7)
    first = sum(sizes[:rank])
    batch = make_batch(sizes[rank], first=first)
    result = step([batch] * micro if micro == 1 else micro_batches(sizes[rank], first, micro), 0)
    return result.loss, gradients(step)


def micro_batches(count: int, first: int, micro: int) -> list[TokenBatch]:
    size = count // micro
    parts = [make_batch(size, first=first + m * size) for m in range(micro)]
    return [
        TokenBatch(p.queries, p.documents, p.relation, share=1 / micro, rows=p.rows, sources=p.sources) for p in parts
    ]


@pytest.mark.parametrize("cached_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("chunk_tokens", [1, 12, 10_000])
def test_one_process_equals_plain_autograd(cached_share, chunk_tokens):
    expected_loss, expected = reference_gradient(BagEncoder(), NaiveInfoNCE(), make_batch(8))
    loss, found = run_step(cached_share, chunk_tokens, 1, [8])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    ratio, cosine = error(found, expected)
    assert ratio == pytest.approx(1, abs=1e-5)
    assert cosine > 1 - 1e-8


@pytest.mark.parametrize(("world", "sizes"), [(2, [4, 4]), (2, [5, 3]), (4, [2, 3, 1, 2])])
@pytest.mark.parametrize("cached_share", [0.0, 1.0])
def test_ranks_equal_one_process_also_when_uneven(world, sizes, cached_share):
    """Norm ratio and cosine both: a gather without the remote gradient has the right length and the wrong direction."""
    expected_loss, expected = reference_gradient(BagEncoder(), NaiveInfoNCE(), make_batch(8))
    for loss, found in run_ranks(run_step, world, cached_share, 12, 1, sizes):
        assert loss == pytest.approx(expected_loss, abs=1e-5)  # the logged loss is that of the whole batch
        ratio, cosine = error(found, expected)
        assert ratio == pytest.approx(1, abs=1e-4)
        assert cosine > 0.9999


def test_dropout_is_replayed_so_cached_equals_plain_to_the_bit():
    plain_loss, plain = run_step(0.0, 12, 1, [8], dropout=0.3)
    for share in (0.5, 1.0):
        loss, cached = run_step(share, 12, 1, [8], dropout=0.3)
        assert loss == plain_loss
        assert all(torch.equal(a, b) for a, b in zip(cached, plain, strict=True))


def test_dropout_differs_between_steps_ranks_chunks_and_micro_batches():
    seeds = {
        mix(0, step, micro, rank, chunk)
        for step in range(9)
        for micro in range(3)
        for rank in range(4)
        for chunk in range(9)
    }
    assert len(seeds) == 9 * 3 * 4 * 9


def seen_by_rank(dropout: float) -> torch.Tensor:
    """The embeddings of the same texts on this rank."""
    seen = []
    encoder = BagEncoder(dropout).train()
    encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.values.detach()))
    ContrastiveStep(encoder=encoder, loss=NaiveInfoNCE(), chunk_tokens=10_000, seed=3)([make_batch(4)], 0)
    return seen[0]


def test_ranks_draw_other_dropout():
    assert torch.equal(*run_ranks(seen_by_rank, 2, 0.0))
    first, second = run_ranks(seen_by_rank, 2, 0.3)
    assert not torch.isclose(first, second).all(dim=1).any()


def test_accumulation_is_the_mean_of_the_micro_batches():
    """Accumulated micro-batches keep their own negatives: the gradient is the mean of their gradients, not a bigger batch."""
    loss, found = run_step(0.0, 100, 2, [8])
    halves = [reference_gradient(BagEncoder(), NaiveInfoNCE(), make_batch(4, first=first)) for first in (0, 4)]
    assert loss == pytest.approx(sum(h[0] for h in halves) / 2, abs=1e-5)
    expected = [(a + b) / 2 for a, b in zip(halves[0][1], halves[1][1], strict=True)]
    ratio, cosine = error(found, expected)
    assert ratio == pytest.approx(1, abs=1e-5)
    assert cosine > 1 - 1e-8


def test_inputs_are_left_as_they_were():
    batch = make_batch(6)
    before = copy.deepcopy(batch)
    ContrastiveStep(encoder=BagEncoder(), loss=NaiveInfoNCE(), chunk_tokens=9, cached_share=1.0)([batch], 0)
    for name in ("queries", "documents"):
        assert torch.equal(getattr(batch, name).ids, getattr(before, name).ids)
        assert torch.equal(getattr(batch, name).spans, getattr(before, name).spans)


def test_an_encoder_that_does_not_replay_is_refused():
    class Drifting(BagEncoder):
        calls = 0

        def forward(self, tokens):
            self.calls += 1
            return Embeddings(super().forward(tokens).values * self.calls)

    step = ContrastiveStep(encoder=Drifting(), loss=NaiveInfoNCE(), chunk_tokens=9, cached_share=1.0)
    with pytest.raises(TrainingError, match=r"training\.cached_share: the second pass over a chunk differs"):
        step([make_batch(6)], 0)


def poisoned(rank_with_nan: int) -> str:
    encoder = BagEncoder()
    batch = make_batch(3, first=3 * distributed.rank())
    if distributed.rank() == rank_with_nan:
        encoder.embedding.weight.data[batch.queries.ids[batch.queries.offsets[1]]] = float("nan")
    step = ContrastiveStep(encoder=encoder, loss=NaiveInfoNCE(), chunk_tokens=100)
    with pytest.raises(TrainingError) as caught:
        step([batch], 41)
    assert all(p.grad is None for p in step.parameters)
    return str(caught.value)


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update_and_names_the_rows():
    for message in run_ranks(poisoned, 2, 1):
        assert message.startswith(
            "step 41: the loss is not finite (sources in the batch: toy; non-finite embeddings come from "
        )
        assert "toy:4" in message
        assert "optim.learning_rate" in message


def test_gradients_are_summed_once_a_step():
    """One collective over the gradients, whatever the number of chunks and micro-batches."""
    calls = run_ranks(count_collectives, 2)
    assert calls == [1, 1]


def count_collectives() -> int:
    calls = 0
    original = distributed._sum_bucket

    def counted(bucket):
        nonlocal calls
        calls += 1
        original(bucket)

    distributed._sum_bucket = counted
    try:
        run_step(1.0, 5, 2, [4, 4])
    finally:
        distributed._sum_bucket = original
    return calls
