"""Every objective that has a YAML, through a real transformer: ranks x chunks x micro-batches x kernels.

Against one call on the whole batch, padded, differentiated by autograd. In float64, so that nothing hides in rounding.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from embedtrain import distributed
from embedtrain.training.step import mix
from embedtrain.training.token_step import TokenStep
from embedtrain.types import TokenTask
from tests.helpers.ranks import run_ranks
from tests.objectives.helpers import OBJECTIVES, batch_of, encoder_for, folder_of, objective_for

ROWS = 6
STEP = 5
MECHANICS = ((1, 1), (40, 1), (40, 2), (100_000, 1))  # tokens of a chunk: one item, a few, all; micro-batches
WORLDS = (1, 2)
CHANGES = {"retromae": {"bag_of_words": 0.1}, "translation": {"rebuild": "both"}}


def built(name: str, folder: str, kernel: str, **options):
    encoder = encoder_for(name, folder, kernel=kernel, **options).double()
    return encoder, objective_for(name, encoder, **CHANGES.get(name, {})).double()


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def whole(name: str, folder: str, **options) -> tuple[float, torch.Tensor]:
    encoder, objective = built(name, folder, "padded", **options)
    encoder.train()
    task: TokenTask = objective.prepare(batch_of(0, ROWS, encoder), mix(0, STEP))
    sums = objective(encoder, task)
    value = sum(objective.weights[term] * sums[term] / task.targets[term].sum() for term in sums)
    parameters = TokenStep(encoder=encoder, objective=objective, chunk_tokens=1).parameters
    return value.item(), flat(torch.autograd.grad(value, parameters))


def steps_of_rank(names: list[str], folders: dict[str, str], options: dict) -> dict:
    """What a rank gets: (objective, kernel, chunk, micro-batches) -> value and gradient."""
    torch.set_num_threads(1)
    world, rank = distributed.world_size(), distributed.rank()
    edges = [0, ROWS] if world == 1 else [0, 4, ROWS]  # uneven
    found = {}
    for name in names:
        for kernel in ("ragged", "padded"):
            encoder, objective = built(name, folders[name], kernel, **options)
            encoder.train()
            first, last = edges[rank : rank + 2]
            for chunk, micro_batches in MECHANICS:
                step = TokenStep(encoder=encoder, objective=objective, chunk_tokens=chunk)
                for parameter in step.parameters:
                    parameter.grad = None
                cuts = [first, last] if micro_batches == 1 else [first, first + 1, last]
                batches = [batch_of(a, b, encoder) for a, b in itertools.pairwise(cuts)]
                result = step(batches, STEP)
                found[name, kernel, chunk, micro_batches] = result.loss, flat(p.grad for p in step.parameters)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return {name: folder_of(name, tmp_path_factory.mktemp(name)) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def matrix(folders) -> dict:
    return {world: run_ranks(steps_of_rank, world, OBJECTIVES, folders, {}) for world in WORLDS}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_mechanics_give_the_gradient_of_one_process_on_the_whole_batch(matrix, folders, name):
    value, gradient = whole(name, folders[name])
    assert gradient.norm() > 0
    worst = 0.0
    for world, ranks in matrix.items():
        for found in ranks:
            for (objective, *mechanics), (loss, grad) in found.items():
                if objective == name:
                    assert loss == pytest.approx(value, rel=1e-9), (world, mechanics)
                    worst = max(worst, float((grad - gradient).norm() / gradient.norm()))
    print(f"\n{name:16s} largest relative error of the gradient over all mechanics: {worst:.1e}")
    assert worst < 1e-9


def test_all_ranks_hold_the_same_gradient(matrix):
    for key, (value, gradient) in matrix[2][0].items():
        assert matrix[2][1][key][0] == value
        assert torch.equal(matrix[2][1][key][1], gradient)


@pytest.mark.parametrize("name", ["mntp", "masked_lm"])
def test_adapters_get_the_same_gradient_too_and_nothing_else_gets_any(folders, name):
    options = {"lora": {"r": 2}}
    value, gradient = whole(name, folders[name], **options)
    for ranks in run_ranks(steps_of_rank, 2, [name], folders, options):
        for loss, grad in ranks.values():
            assert loss == pytest.approx(value, rel=1e-9)
            assert float((grad - gradient).norm() / gradient.norm()) < 1e-9
    encoder, objective = built(name, folders[name], "ragged", **options)
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained)
    # The transform of a BERT without a head is new and trains; a tied decoder has nothing of its own.
    assert bool([p for p in objective.parameters() if p.requires_grad]) == (name == "masked_lm")
