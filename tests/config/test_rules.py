from __future__ import annotations

from collections.abc import Callable

import pytest

from embedtrain.config.rules import sources
from embedtrain.errors import ConfigError


def test_a_good_config_has_only_the_missing_evaluation_to_regret(warnings_of: Callable[..., list[str]]) -> None:
    assert warnings_of() == ["evaluation.evaluators: empty, so nothing will say whether the model got better."]


def test_accumulation_warns_that_it_adds_no_negatives(warnings_of: Callable[..., list[str]]) -> None:
    warning = next(w for w in warnings_of("training.accumulation_steps=2") if "accumulation_steps" in w)
    assert "a query has 3 other queries' documents as negatives and not 7" in warning
    assert "training.accumulation_steps=1 training.cached_share=1.0" in warning


def test_accumulation_is_no_concern_without_in_batch_negatives(warnings_of: Callable[..., list[str]]) -> None:
    warnings = warnings_of("training.accumulation_steps=2", "loss.negatives=hard_only", "data.num_negatives=1")
    assert not any("accumulation_steps" in warning for warning in warnings)


def test_strict_makes_errors_of_warnings(refusal_of: Callable[..., str]) -> None:
    message = refusal_of("training.accumulation_steps=2", "training.strict=true")
    assert "training.accumulation_steps=2" in message
    assert "(an error because of training.strict)" in message


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.global_batch_size=1", "data.num_negatives=0"),
        ("training.global_batch_size=4", "training.accumulation_steps=4", "data.num_negatives=0"),
        ("loss.negatives=hard_only", "data.num_negatives=0"),
    ],
)
def test_one_candidate_per_query_is_refused(overrides: tuple[str, ...], refusal_of: Callable[..., str]) -> None:
    message = refusal_of(*overrides)
    assert "each query would see 1 candidate, its own positive, and the loss would be 0" in message


def test_one_query_per_rank_has_candidates_when_there_are_more_ranks(warnings_of: Callable[..., list[str]]) -> None:
    overrides = ("training.global_batch_size=null", "training.per_device_batch_size=1", "data.num_negatives=0")
    warnings_of(*overrides, world=2)
    with pytest.raises(ConfigError, match="1 candidate"):
        warnings_of(*overrides, world=1)


def test_a_batch_smaller_than_the_ranks_is_refused(refusal_of: Callable[..., str]) -> None:
    assert "fewer than the 16 ranks" in refusal_of(world=16)


def test_fp16_and_remote_code_are_warned_of(warnings_of: Callable[..., list[str]]) -> None:
    warnings = "\n".join(warnings_of("training.mixed_precision=fp16", "backbone.trust_remote_code=true"))
    assert "training.mixed_precision=fp16: large models overflow its range (65504)" in warnings
    assert "backbone.trust_remote_code=true: Python code of the model's author will run" in warnings


def test_a_tracker_without_its_package_is_refused_with_the_command_that_installs_it(
    refusal_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal_of("trackers=wandb")
    assert message == "trackers.wandb: the package wandb is not installed. pip install 'embedtrain[wandb]'"


def test_early_stop_needs_evaluations_on_the_way(refusal_of: Callable[..., str], pairs: object) -> None:
    overrides = ("evaluation=beir", "evaluation.evaluators.beir.path=.", "training.early_stop.patience=2")
    assert "training.early_stop.patience: set training.evaluate_every (steps)" in refusal_of(*overrides)


def test_a_teacher_that_no_loss_reads_is_to_be_regretted(warnings_of: Callable[..., list[str]]) -> None:
    teacher = ("teacher@teachers.big=online", "teachers.big.model=somewhere")
    warning = "teachers.big: no loss reads it, and yet it embeds every batch. Take it out: ~teachers.big"
    assert warning in warnings_of(*teacher)
    assert warning not in warnings_of(*teacher, "loss=in_batch_kl", "loss.teacher=big")
    assert warning not in warnings_of(*teacher, "loss=stella", "loss.losses.match.teacher=big")


# ------------------------------------------------------------------------------------------------- settings of a source

STS = ("source@data.sources.sts=jsonl", "data.sources.sts.path=${data.path}")
CLASSES = ("source@data.sources.cls=labeled_texts", "data.sources.cls.path=${data.path}")


@pytest.mark.parametrize(
    ("overrides", "world", "message"),
    [
        (
            ("data.sources.pairs.batch_size=2",),
            4,
            "data.sources.pairs.batch_size=2 gives each of 1 micro-batches 2 queries, fewer than the 4 ranks",
        ),
        (
            ("data.sources.pairs.batch_size=5", "training.accumulation_steps=2"),
            1,
            "training.accumulation_steps=2 does not divide data.sources.pairs.batch_size=5",
        ),
        (
            ("data.sources.pairs.batch_size=4", "data.batching=blended"),
            1,
            "data.sources.pairs.batch_size=4: with data.batching=blended a batch is of all sources",
        ),
        (
            (
                "source@data.sources.rich=augmented",
                "source@data.sources.rich.rows=csv",
                "data.sources.rich.rows.path=${data.path}",
                "data.sources.rich.rows.split_by=task",
            ),
            1,
            "data.sources.rich.rows.split_by=task: a source inside another component stays one",
        ),
        (
            ("data.sources_per_batch=2", "data.batching=blended", "data.sources.pairs.batch_size=4"),
            1,
            "data.sources_per_batch=2: with data.batching=blended a batch is of all sources",
        ),
        (
            ("data.sources_per_batch=2", "data.sources.pairs.texts_per_label=2"),
            1,
            "data.sources.pairs.texts_per_label=2: with data.sources_per_batch=2 a batch is of several sources",
        ),
        (
            ("data.sources_per_batch=3",),
            1,
            "data.sources_per_batch=3 does not divide training.global_batch_size=8: each source brings an equal part",
        ),
        (
            ("data.sources.pairs.texts_per_label=3",),
            1,
            "data.sources.pairs.texts_per_label=3: batches of this source have 8 queries, which is not 2 or more classes of 3",
        ),
        (
            ("data.sources.pairs.batch_size=1", "data.sources.pairs.num_negatives=0"),
            1,
            "data.sources.pairs.num_negatives=0: a micro-batch has 1 query, so each query would see 1 candidate",
        ),
        (("data.sources.pairs.batch_sise=4",), 1, "has no key 'batch_sise'. Did you mean 'batch_size'?"),
        (("data.sources.pairs.num_positives=two",), 1, "expected a whole number or null, got 'two'"),
    ],
)
def test_what_a_source_cannot_have_is_refused(
    overrides: tuple[str, ...], world: int, message: str, refusal_of: Callable[..., str]
) -> None:
    assert message in refusal_of(*overrides, world=world)


def test_a_source_is_judged_by_the_loss_that_it_is_routed_to(warnings_of: Callable[..., list[str]]) -> None:
    """One query with one document is nothing to a contrastive loss and enough for a graded one."""
    alone = ("data.sources.sts.batch_size=1", "data.sources.sts.num_negatives=0")
    routed = ("loss=routed", "+loss@loss.losses.sts=pearson")
    warnings_of(*STS, *alone, *routed)
    with pytest.raises(ConfigError, match=r"data\.sources\.sts\.num_negatives=0: a micro-batch has 1 query"):
        warnings_of(*STS, *alone)


def test_graded_pairs_under_a_contrastive_loss_are_warned_of(warnings_of: Callable[..., list[str]]) -> None:
    scale = "data.sources.sts.score_range=[0,5]"
    found = [w for w in warnings_of(*STS, scale) if "score_range" in w]
    assert len(found) == 1
    assert "also those with score 0" in found[0]
    assert "loss=routed '+loss@loss.losses.sts=cosent'" in found[0]
    for loss in (("loss=routed", "+loss@loss.losses.sts=cosent"), ("loss=e2rank",)):
        assert not any("score_range" in w for w in warnings_of(*STS, scale, *loss))


def test_a_length_above_that_of_the_model_is_warned_of(warnings_of: Callable[..., list[str]]) -> None:
    found = warnings_of("data.sources.pairs.max_document_length=1024", "data.sources.pairs.max_query_length=64")
    assert [w for w in found if "max_" in w] == [
        "data.sources.pairs.max_document_length=1024: the model is evaluated and exported with "
        "encoder.max_document_length=512, so it is trained on more of a text than it will read."
    ]


def test_negatives_that_may_be_of_the_same_class_are_warned_of(warnings_of: Callable[..., list[str]]) -> None:
    def of_classes(*overrides: str) -> list[str]:
        return [w for w in warnings_of(*CLASSES, *overrides) if w.startswith("data.sources.cls")]

    assert "in-batch negatives that may be of the row's own class" in of_classes()[0]
    assert "the hard negative of another row may be of the row's own class" in of_classes("loss=class_masked")[0]
    assert of_classes("loss=class_masked", "data.sources.cls.num_negatives=0") == []
    assert of_classes("loss.negatives=hard_only") == []
    assert of_classes("data.sources.cls.form=label") == []
    assert of_classes("loss=routed", "+loss@loss.losses.cls=online_triplet") == []


def test_the_name_of_a_source_has_no_slash_which_is_that_of_a_part() -> None:
    config = {"data": {"sources": {"a/b": {}}}, "prompts": {"sources": {}}, "evaluation": {"evaluators": {}}}
    (problem,) = sources(config, 1)
    assert problem.text == "data.sources.a/b: expected a name without '/', which stands before the part of a table."
