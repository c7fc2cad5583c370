"""Where ranks and micro-batches share no negatives, each has a neighbourhood of its own in place of a slice of one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.neighbourhoods import describe_neighbourhoods
from embedtrain.data.sampling import Sampler, batch_sizes, part, softmaxes
from embedtrain.errors import ConfigError
from tests.data.helpers import Rows, pairs
from tests.data.test_neighbourhoods import cluster_sizes, shuffled


def sampler(clusters: np.ndarray, batch: int, parts: tuple[int, int], **given) -> Sampler:
    mix = Mixture(sources={"s": Rows(pairs(clusters.size))})
    return Sampler(mix, seed=0, global_batch_size=batch, clusters={"s": clusters}, softmaxes=parts, **given)


def of_every_softmax(subject: Sampler, parts: tuple[int, int]) -> list[list[int]]:
    """The clusters of what each rank reads for each micro-batch, through the loader itself."""
    found = []
    for rank in range(parts[1]):
        loader = StepLoader(
            sampler=subject,
            tokenizer=None,  # type: ignore[arg-type]  # nothing is tokenised
            accumulation_steps=parts[0],
            rank=rank,
            world_size=parts[1],
        )
        for step in range(len(loader)):
            found += [subject.clusters["s"][micro.rows.row].tolist() for micro in loader.request(step)]
    return found


@pytest.mark.parametrize("parts", [(1, 2), (2, 1), (2, 3)])
def test_each_rank_and_micro_batch_has_a_cluster_of_its_own(parts):
    count = parts[0] * parts[1]
    clusters = shuffled([4] * (3 * count))
    seen = of_every_softmax(sampler(clusters, 4 * count, parts), parts)
    assert all(len(rows) == 4 and len(set(rows)) == 1 for rows in seen)
    assert sorted(rows[0] for rows in seen) == list(range(3 * count))


@given(cluster_sizes, st.sampled_from([(1, 2), (2, 2), (3, 1)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_batches_have_the_usual_sizes_and_every_row_once(counts, parts, drop_last):
    batch = 2 * parts[0] * parts[1]
    if sum(counts) < batch:
        return
    plan = sampler(shuffled(counts), batch, parts, drop_last=drop_last).epoch(0)
    assert plan.sizes.tolist() == batch_sizes(sum(counts), batch, drop_last).tolist()
    assert len(set(plan.rows.row.tolist())) == len(plan.rows) == plan.sizes.sum()


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4))
def test_slices_are_those_that_the_loader_cuts(size, micro, ranks):
    subject = sampler(shuffled([12]), micro * ranks if micro * ranks > 1 else 2, (micro, ranks))
    cut = []
    for number in range(micro):
        rows = range(size)[part(size, number, micro)]
        cut += [len(rows[part(len(rows), rank, ranks)]) for rank in range(ranks)]
    assert subject.slices(np.array([size])).tolist() == cut


def test_the_log_speaks_of_what_a_softmax_sees():
    said = describe_neighbourhoods(sampler(shuffled([4] * 4), 8, (1, 2)))
    assert "100.0% of its batches are of one" in said


def test_a_batch_that_cannot_be_shared_out_is_refused_and_other_ranks_are_another_run():
    with pytest.raises(ConfigError, match="multiple of 4"):
        sampler(shuffled([20]), 6, (2, 2))
    clusters = shuffled([20])
    one, other = (sampler(clusters, 8, parts).fingerprint for parts in ((1, 2), (1, 4)))
    assert one != other
    assert "micro-batches and ranks, which share no negatives," not in sampler(clusters, 8, (1, 1)).fingerprint


def test_the_wish_is_that_of_training_gather():
    assert softmaxes({"gather": True, "accumulation_steps": 3}, 8) == (1, 1)
    assert softmaxes({"gather": False, "accumulation_steps": 3}, 8) == (3, 8)
