"""A loss and token objectives in one step: the sum of their gradients, whatever the chunks, micro-batches and ranks."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from embedtrain import distributed
from embedtrain.config.build import build
from embedtrain.config.compose import compose_config
from embedtrain.config.stages import stage_configs
from embedtrain.config.validate import validate
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.planning import make_plan
from embedtrain.training.building import build_named
from embedtrain.training.export_run import export_run
from embedtrain.training.joint_step import Joined, JointStep
from embedtrain.training.step import mix
from embedtrain.types import text_id
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_settings, tiny_trainer, train_tiny
from tests.objectives.helpers import batch_of, encoder_for, folder_of, objective_for

ROWS, STEP, TEMPERATURE = 6, 5, 0.0625
WEIGHTS = {"words": 0.3, "translated": 2.0}
KINDS = {"words": "masked_lm", "translated": "translation"}
MECHANICS = ((1, 1, 0.0), (40, 1, 1.0), (40, 2, 0.5), (100_000, 1, 0.0))  # chunk tokens, micro-batches, cached share


def joined(folder: str, kernel: str = "ragged") -> tuple:
    encoder = encoder_for("masked_lm", folder, kernel=kernel).double()
    objectives = {name: objective_for(kind, encoder) for name, kind in KINDS.items()}
    loss = build(compose_config(["loss=infonce", f"loss.temperature={TEMPERATURE}"]).config["loss"])
    encoder.train()
    return encoder, Joined(loss, objectives, WEIGHTS).double()


def step_of(encoder, learned, chunk: int = 1000, cached: float = 0.0) -> JointStep:
    return JointStep(
        learned=learned,
        passes={"encoder": encoder, "chunk_tokens": chunk, "seed": 0},
        contrast={"cached_share": cached, "teachers": None, "gather": True},
    )


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def by_hand(folder: str, cuts: list[int]) -> tuple[dict[str, float], torch.Tensor]:
    """Values and gradient: the softmax of each micro-batch written out, and each objective on the whole batch at once."""
    encoder, learned = joined(folder, "padded")
    contrast = 0.0
    for first, last in itertools.pairwise(cuts):
        batch = batch_of(first, last, encoder)
        assert batch.relation.document_ids.unique().numel() == batch.relation.num_documents  # nothing is left out
        queries, documents = encoder(batch.queries).values, encoder(batch.documents).values
        owner, positive = batch.relation.owner, batch.relation.is_positive
        for q in range(last - first):
            scores = [(queries[q] @ document) / TEMPERATURE for document in documents]
            own = next(d for d in range(len(scores)) if owner[d] == q and positive[d])
            contrast = contrast + (torch.logsumexp(torch.stack(scores), 0) - scores[own]) / ROWS
    total, values = contrast, {"contrast": contrast.item()}
    for name, objective in learned.objectives.items():
        task = objective.prepare(batch_of(0, ROWS, encoder), mix(mix(0, text_id(name)), STEP))
        for term, value in objective(encoder, task).items():
            mean = value / task.targets[term].sum()
            values[f"{name}/{term}"] = mean.item()
            total = total + WEIGHTS[name] * objective.weights[term] * mean
    values["loss"] = total.item()
    parameters = step_of(encoder, learned).parameters
    return values, flat(torch.autograd.grad(total, parameters))


def steps_of_rank(folder: str) -> dict:
    torch.set_num_threads(1)
    edges = [0, ROWS] if distributed.world_size() == 1 else [0, 4, ROWS]  # uneven
    first, last = edges[distributed.rank() : distributed.rank() + 2]
    found = {}
    for chunk, micro_batches, cached in MECHANICS:
        if micro_batches == 2 and distributed.world_size() == 2:
            continue  # the micro-batches of two ranks are other ones than those of one
        encoder, learned = joined(folder)
        step = step_of(encoder, learned, chunk, cached)
        cuts = [first, last] if micro_batches == 1 else [first, 2, last]
        batches = [batch_of(a, b, encoder) for a, b in itertools.pairwise(cuts)]
        shares = [len(batch.queries) / ROWS if micro_batches == 2 else 1.0 for batch in batches]
        object.__setattr__(batches[0], "share", shares[0])
        object.__setattr__(batches[-1], "share", shares[-1])
        result = step(batches, STEP)
        found[chunk, micro_batches] = (result.metrics | {"loss": result.loss}, flat(p.grad for p in step.parameters))
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_any_mechanics_give_the_sum_of_both_gradients_of_one_process_on_the_whole_batch(tmp_path, world):
    folder = folder_of("masked_lm", tmp_path)
    expected = {micro: by_hand(folder, [0, ROWS] if micro == 1 else [0, 2, ROWS]) for micro in (1, 2)}
    for found in run_ranks(steps_of_rank, world, folder):
        for (_, micro), (values, gradient) in found.items():
            wanted, exact = expected[micro]
            assert values.keys() >= wanted.keys()
            assert {name: values[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
            assert float((gradient - exact).norm() / exact.norm()) < 2e-6  # an encoder gives its embeddings in fp32


def test_two_objectives_of_a_kind_hide_other_words(tmp_path):
    encoder = encoder_for("masked_lm", folder_of("masked_lm", tmp_path))
    both = {name: objective_for("masked_lm", encoder) for name in ("a", "b")}
    step = step_of(encoder, Joined(torch.nn.Identity(), both, {"a": 1.0, "b": 1.0}))
    tasks = [added._task([batch_of(0, 4, encoder)], 0) for added in step.added.values()]
    assert not torch.equal(*(task.texts["text"].ids for task in tasks))


def test_an_objective_that_is_no_number_stops_the_step_before_the_update(tmp_path):
    encoder, learned = joined(folder_of("masked_lm", tmp_path))
    with torch.no_grad():
        learned.objectives["translated"].mask[:] = float("nan")
    with pytest.raises(TrainingError, match=r"step 2: the loss is not finite; rows in the chunks concerned: file:\d"):
        step_of(encoder, learned)([batch_of(0, 3, encoder)], 2)


# ------------------------------------------------------------------------------------------------------ whole runs

ADDED = (
    "objective@auxiliary.words.objective=masked_lm",
    "auxiliary.words.weight=0.5",
    "objective@auxiliary.translated.objective=translation",
    "auxiliary.translated.weight=0.1",
)


def stopped(config):
    return train_tiny(config, stop_after=4)


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_run_ends_with_the_same_weights_to_the_bit(tmp_path, world):
    settings = (*ADDED, "backbone.dropout=0.2")
    straight = run_ranks(train_tiny, world, tiny_config(tmp_path, *settings, name="straight"))
    config = tiny_config(tmp_path, *settings, name="stopped")
    run_ranks(stopped, world, config)
    for (_, expected, _), (_, found, _) in zip(straight, run_ranks(train_tiny, world, config), strict=True):
        assert torch.equal(found, expected)
    logged = [json.loads(line) for line in (tmp_path / "stopped/metrics.jsonl").read_text().splitlines()]
    assert {"train/contrast", "train/words/masked_lm", "train/translated/document"} <= logged[-1].keys()
    parts = [logged[-1][f"train/{name}"] for name in ("contrast", "words/masked_lm", "translated/document")]
    assert logged[-1]["train/loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.1 * parts[2])


def test_checkpoints_hold_the_heads_and_exports_do_not(tmp_path):
    config = tiny_config(tmp_path, *ADDED, "export.num_probes=2")
    trainer = tiny_trainer(config)
    names = [name for name, _ in trainer.named]
    assert any(name.startswith("auxiliary.words.head.") for name in names)
    assert any(name.startswith("auxiliary.translated.blocks.0.") for name in names)
    assert names == [name for name, _ in build_named(config, trainer.step.encoder, trainer.step.loss)]
    assert {id(p) for _, p in trainer.named} == {id(p) for p in trainer.step.parameters}
    trainer.fit(trainer.resume())
    trainer.save(trainer.total_steps)
    trainer.run._lock.close()
    assert export_run(tmp_path / "run", None).worst_cosine > 0.9999


def test_the_first_step_says_what_each_objective_asks(tmp_path, capsys):
    stopped(tiny_config(tmp_path, *ADDED))
    said = capsys.readouterr().out
    assert "first step: 8 queries, each with 1.0 positives" in said
    assert "words: first step: 24 texts" in said
    assert "translated: first step: 8 pairs" in said


def test_check_counts_the_heads_and_their_passes(tmp_path):
    alone, both = (make_plan(tiny_config(tmp_path, *added), world=1) for added in ((), ADDED))
    assert both.parameters.total > alone.parameters.total
    assert both.outlay.flops_per_step > 2.9 * alone.outlay.flops_per_step


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("auxiliary.a.weight=1",), r"auxiliary\.a: expected {weight: <number>, objective: <component>}"),
        (("objective@auxiliary.a.objective=masked_lm",), r"auxiliary\.a: expected {weight: <number>, objective: "),
        (
            ("objective@auxiliary.a.objective=masked_lm", "auxiliary.a.weight=0"),
            r"auxiliary\.a\.weight: expected a number above 0, got 0",
        ),
        (
            ("objective@auxiliary.a.objective=masked_lm", "auxiliary.a.weight=1", "auxiliary.a.objective.shar=0.2"),
            r"auxiliary\.a\.objective\.shar: MaskedLanguageModel has no key 'shar'. Did you mean 'share'",
        ),
        (
            ("objective@auxiliary.a.objective=masked_lm", "auxiliary.a.weight=1", "loss=null", "objective=masked_lm"),
            r"auxiliary: is added to a loss, and this run trains by an objective",
        ),
    ],
)
def test_what_cannot_be_added_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, *overrides)


def test_a_stage_that_trains_by_an_objective_has_nothing_added(tmp_path):
    stages = ("objective@stages.adapt.objective=masked_lm", "stages.contrast={}")
    composed = compose_config(tiny_settings(tmp_path, *ADDED, *stages))
    validate(composed.config, composed.problems)
    adapt, contrast = stage_configs(composed.config).values()
    assert (adapt["auxiliary"], list(contrast["auxiliary"])) == ({}, ["words", "translated"])
