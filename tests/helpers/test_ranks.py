import os
import time

import pytest
import torch

from embedtrain.distributed import rank, sum_over_ranks, world_size
from tests.helpers.ranks import RankFailedError, run_ranks


def add_up(values):
    return rank(), world_size(), sum_over_ranks(values[rank()])


def fail_on_rank_one():
    if rank() == 1:
        raise ValueError("rank one does not like this")
    sum_over_ranks(torch.ones(1))  # would wait for rank 1


def die():
    if rank() == 0:
        os._exit(3)
    time.sleep(60)


def hang():
    time.sleep(60)


def read_environment(name):
    return os.environ[name]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_compute_together_and_answer_in_order(ranks):
    values = torch.arange(1.0, 5.0)
    assert run_ranks(add_up, ranks, values) == [(r, ranks, values[:ranks].sum()) for r in range(ranks)]


def test_failure_of_one_rank_ends_all_and_brings_its_traceback():
    start = time.monotonic()
    with pytest.raises(RankFailedError, match=r"rank 1 of 2: Traceback(.|\n)*rank one does not like this"):
        run_ranks(fail_on_rank_one, 2)
    assert time.monotonic() - start < 30


def test_death_of_a_rank_is_noticed():
    with pytest.raises(RankFailedError, match="rank 0 of 2: died"):
        run_ranks(die, 2)


def test_hang_is_cut_off():
    with pytest.raises(RankFailedError, match="no answer within 1 s"):
        run_ranks(hang, 1, timeout=1)


def test_ranks_see_the_environment_of_the_test(monkeypatch):
    monkeypatch.setenv("EMBEDTRAIN_TEST_MARK", "seen")
    assert run_ranks(read_environment, 1, "EMBEDTRAIN_TEST_MARK") == ["seen"]
