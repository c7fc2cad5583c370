"""The ranks: what is gathered, what is summed, and which gradient comes back. Real gloo processes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from embedtrain import distributed
from embedtrain.types import Relation
from tests.helpers.ranks import run_ranks
from tests.training.test_parity import batch_of

COUNTS = {2: [3, 1], 4: [2, 0, 1, 3]}


def rows_of(rank: int, counts: list[int]) -> torch.Tensor:
    return torch.arange(sum(counts) * 2, dtype=torch.float64).view(-1, 2).split(counts)[rank]


def gather_and_back(counts):
    """Each rank weighs all rows by its own number, so row gradients are the sum of all ranks' weights."""
    own = rows_of(distributed.rank(), counts).clone().requires_grad_()
    everything = distributed.gather_rows(own, counts)
    ((distributed.rank() + 1) * everything.square()).sum().backward()
    return everything.detach(), own.grad


@pytest.mark.parametrize("world", [2, 4])
def test_gather_brings_uneven_rows_in_rank_order_and_sums_their_gradients(world):
    counts = COUNTS[world]
    everything = torch.arange(sum(counts) * 2, dtype=torch.float64).view(-1, 2)
    weights = sum(range(1, world + 1))
    for rank, (found, gradient) in enumerate(run_ranks(gather_and_back, world, counts)):
        assert torch.equal(found, everything)
        assert torch.equal(gradient, 2 * weights * rows_of(rank, counts))


def relation_of_rank(edges, scored):
    rank = distributed.rank()
    relation = batch_of(edges[rank], edges[rank + 1]).relation
    relation = replace(relation, scores=relation.owner.float() + edges[rank] if scored[rank] else None)
    return distributed.gather_relation(relation)


@pytest.mark.parametrize("scored", [[True, True], [True, False]])
def test_a_gathered_relation_is_that_of_the_whole_batch(scored):
    whole = batch_of(0, 8).relation
    for found, queries, documents in run_ranks(relation_of_rank, 2, [0, 5, 8], scored):
        for name in ("query_ids", "document_ids", "owner", "is_positive", "known_ids", "known_offsets"):
            assert torch.equal(getattr(found, name), getattr(whole, name)), name
        assert queries == [5, 3]
        assert sum(documents) == whole.num_documents
        own = torch.tensor(scored)[(whole.owner >= 5).long()]  # what a rank has no scores for is NaN on all
        assert torch.equal(found.scores[own], whole.owner.float()[own])
        assert found.scores[~own].isnan().all()


def test_one_process_gathers_itself():
    relation = batch_of(0, 3).relation
    found, queries, documents = distributed.gather_relation(relation)
    assert found is relation
    assert (queries, documents) == ([3], [relation.num_documents])
    rows = torch.ones(2, 2)
    assert distributed.gather_rows(rows, [2]) is rows


def summed_gradients(bucket_bytes):
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 5).to(torch.float64), nn.Linear(2, 2)])
    model[3].requires_grad_(False)
    rank = distributed.rank()
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad and (rank, number) != (1, 2):  # rank 1 has no gradient of the third
            parameter.grad = torch.full_like(parameter, 10.0 * number + rank)
    distributed.sum_gradients(model.parameters(), bucket_bytes=bucket_bytes)
    return [None if p.grad is None else (p.grad.dtype, p.grad.unique().tolist()) for p in model.parameters()]


@pytest.mark.parametrize("bucket_bytes", [1, 40, 10**6])
def test_gradients_are_summed_in_any_buckets_also_where_a_rank_has_none(bucket_bytes):
    expected = [
        (torch.float32, [1.0]),
        (torch.float32, [21.0]),
        (torch.float32, [20.0]),
        (torch.float32, [61.0]),
        (torch.float64, [81.0]),
        (torch.float64, [101.0]),
        None,
        None,
    ]
    assert run_ranks(summed_gradients, 2, bucket_bytes) == [expected, expected]


def told():
    rank = distributed.rank()
    value = torch.full((2,), float(rank))
    distributed.broadcast_tensors([value])
    return (
        distributed.broadcast_object(f"from {rank}"),
        distributed.gather_objects(rank * 10),
        distributed.any_rank(rank == 1),
        distributed.any_rank(False),
        distributed.sum_over_ranks(torch.tensor(rank + 1)).item(),
        value.tolist(),
        distributed.is_main(),
    )


def test_what_one_rank_knows_all_are_told():
    first, second = run_ranks(told, 2)
    assert first == ("from 0", [0, 10], True, False, 3, [0.0, 0.0], True)
    assert second == ("from 0", [0, 10], True, False, 3, [0.0, 0.0], False)


def test_a_relation_survives_the_move_to_a_device():
    relation = batch_of(0, 4).relation
    moved = relation.to("cpu")
    assert isinstance(moved, Relation)
    assert torch.equal(moved.owner, relation.owner)
    assert torch.equal(moved.scores, relation.scores)
