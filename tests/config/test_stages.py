"""Stages are the run's settings with a few differences; what is wrong with one is said with its key."""

from __future__ import annotations

import pytest

from embedtrain.config.compose import compose_config
from embedtrain.config.difference import differences
from embedtrain.config.stages import stage_configs
from embedtrain.config.validate import validate
from embedtrain.errors import ConfigError
from tests.helpers.runs import write_pairs


@pytest.fixture
def base(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    return [
        "data=pairs",
        "backbone.name=some/model",
        f"data.path={tmp_path / 'pairs.jsonl'}",
        "training.global_batch_size=8",
        "evaluation.before=false",
        "evaluation.after=false",
    ]


def composed(base, *overrides):
    found = compose_config([*base, *overrides])
    return found.config, validate(found.config, found.problems)


ADAPT = "objective@stages.adapt.objective=masked_lm"
CONTRAST = "stages.contrast={}"


def test_a_run_without_stages_is_its_own_only_one(base):
    config, _ = composed(base)
    assert stage_configs(config) == {"": config}


def test_a_stage_is_the_run_with_its_differences_in_a_folder_of_its_own(base):
    config, _ = composed(base, ADAPT, CONTRAST, "stages.adapt.optim.learning_rate=1e-4", "run.name=two")
    adapt, contrast = stage_configs(config).values()
    assert (adapt["optim"]["learning_rate"], contrast["optim"]["learning_rate"]) == (1e-4, 2e-5)
    assert adapt["optim"]["weight_decay"] == config["optim"]["weight_decay"]
    assert (adapt["run"]["dir"], contrast["run"]["dir"]) == ("runs/two/stages/adapt", "runs/two/stages/contrast")
    assert (adapt["loss"], contrast["objective"]) == ({}, {})
    assert adapt["objective"]["_target_"].endswith("MaskedLanguageModel")
    assert contrast["loss"] == config["loss"]


def test_a_component_of_another_kind_replaces_the_whole_one_and_of_the_same_kind_is_merged(base):
    config, _ = composed(
        base, ADAPT, CONTRAST, "pooling@stages.adapt.pooling=cls", "stages.contrast.loss.temperature=0.1"
    )
    adapt, contrast = stage_configs(config).values()
    assert adapt["pooling"] == {"_target_": "embedtrain.pooling.cls.ClsPooling"}
    assert contrast["loss"] == config["loss"] | {"temperature": 0.1}


def test_null_takes_a_stage_and_a_source_out(base, tmp_path):
    texts = (
        "source@stages.adapt.data.sources.texts=texts",
        f"stages.adapt.data.sources.texts.path={tmp_path / 'texts.txt'}",
    )
    config, _ = composed(base, ADAPT, *texts, "stages.adapt.data.sources.pairs=null", CONTRAST, "stages.middle=null")
    assert list(stage_configs(config)) == ["adapt", "contrast"]
    sources = stage_configs(config)["adapt"]["data"]["sources"]
    assert [name for name, node in sources.items() if node is not None] == ["texts"]


def test_measuring_goes_around_all_stages_unless_one_asks_for_it(base):
    config, _ = composed(
        [*base[:-2]], ADAPT, "stages.middle={evaluation: {after: true}}", CONTRAST, "evaluation.before=true"
    )
    flags = [(s["evaluation"]["before"], s["evaluation"]["after"]) for s in stage_configs(config).values()]
    assert flags == [(True, False), (False, True), (False, True)]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.contrast.run.seed=1"], r"stages\.contrast\.run: belongs to the whole run"),
        (["stages.contrast=3"], r"stages\.contrast: expected the settings that differ in this stage, got 3"),
        (["stages={-x: {}}"], r"a stage is a folder too"),
        (
            ["stages.contrast.backbone.name=other"],
            r"stages\.contrast\.backbone\.name='other': one model goes through all",
        ),
        (
            ["stages.contrast.training.mixed_precision=bf16"],
            r"stages\.contrast\.training\.mixed_precision: one process",
        ),
        (["stages.contrast.training.max_stepz=3"], r"stages\.contrast\.training\.max_stepz.*max_steps"),
        (["stages.contrast.training.epochs=0"], r"stages\.contrast\.training\.epochs: must be at least 1"),
        (
            ["loss@stages.adapt.loss=infonce"],
            r"stages\.adapt\.loss and objective: a run, or a stage of one, trains by one",
        ),
        (["stages.adapt.objective.shear=0.5"], r"stages\.adapt\.objective\.shear.*share"),
        (["stages.adapt.objective.encoder=1"], r"stages\.adapt\.objective\.encoder: the program sets this itself"),
    ],
)
def test_a_mistake_in_a_stage_is_said_with_its_key(base, overrides, said):
    with pytest.raises(ConfigError, match=said):
        composed(base, ADAPT, CONTRAST, *overrides)


def test_what_is_wrong_with_the_run_is_said_once_and_without_a_stage(base):
    with pytest.raises(ConfigError) as error:
        composed(base, ADAPT, CONTRAST, "training.global_batch_size=null")
    assert str(error.value).startswith("training.global_batch_size: set it")
    assert str(error.value).count("global_batch_size: set it") == 1


def test_a_run_that_trains_by_both_is_refused(base):
    with pytest.raises(ConfigError, match=r"loss and objective.*Set loss=null"):
        composed(base, "objective=masked_lm")
    assert composed(base, "objective=masked_lm", "loss=null")[1] is not None


def test_adapters_that_will_be_rounded_into_half_precision_are_regretted(base):
    lora = ["backbone.dtype=bfloat16", "backbone.lora={r: 4}"]
    _, warnings = composed(base, ADAPT, CONTRAST, *lora)
    assert [w for w in warnings if w.startswith("stages.adapt.backbone.dtype=bfloat16")]
    assert not [w for w in warnings if w.startswith("stages.contrast.backbone.dtype")]


def test_texts_that_are_their_own_positives_want_dropout(base, tmp_path):
    texts = ["data=texts", f"data.path={tmp_path / 'texts.txt'}", base[1], *base[3:]]
    assert any("SimCSE" in warning for warning in composed(texts, "backbone.dropout=0")[1])
    assert not any("SimCSE" in warning for warning in composed(texts, "backbone.dropout=0.1")[1])
    assert not any("SimCSE" in w for w in composed(texts, "backbone.dropout=0", "objective=masked_lm", "loss=null")[1])


def test_a_stage_may_change_on_resume_what_a_run_may(base):
    old, _ = composed(
        base, ADAPT, CONTRAST, "stages.adapt.training.log_every=5", "stages.adapt.optim.learning_rate=1e-4"
    )
    new, _ = composed(
        base, ADAPT, CONTRAST, "stages.adapt.training.log_every=6", "stages.adapt.optim.learning_rate=1e-3"
    )
    result, free = differences(old, new)
    assert [line.partition(":")[0] for line in result] == ["stages.adapt.optim.learning_rate"]
    assert [line.partition(":")[0] for line in free] == ["stages.adapt.training.log_every"]
