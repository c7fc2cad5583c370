"""What each mistake prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedtrain.config.compose import compose_config
from embedtrain.errors import ConfigError

ONE_PROBLEM = [
    # unknown keys, also with a +
    ("training.epoch=3", "training.epoch: training has no key 'epoch'. Did you mean 'epochs'?"),
    ("+training.epoch=3", "training.epoch: training has no key 'epoch'. Did you mean 'epochs'?"),
    ("++optim.learning_rat=1", "optim.learning_rat: optim has no key 'learning_rat'. Did you mean 'learning_rate'?"),
    ("optm.eps=1", "optm: the config has no key 'optm'. Did you mean 'optim'?"),
    ("lss=infonce", "lss: the config has no key 'lss'. Did you mean 'loss'?"),
    ("training.zzz=1", "training.zzz: training has no key 'zzz'. It has: accumulation_steps, cached_share,"),
    ("training.early_stop.patiense=1", "early_stop has no key 'patiense'. Did you mean 'patience'?"),
    # keys that stand elsewhere, or are named otherwise in other trainers
    ("training.learning_rate=1e-5", "Did you mean 'optim.learning_rate'?"),
    ("lr=1e-5", "lr: the config has no key 'lr'. Here that is optim.learning_rate."),
    ("training.gradient_accumulation_steps=2", "Here that is training.accumulation_steps."),
    # wrong types
    ("training.epochs=abc", "training.epochs: expected a whole number or null, got 'abc'."),
    ("training.log_every=null", "training.log_every: expected a whole number, got None."),
    ("optim.learning_rate=fast", "optim.learning_rate: expected a number, got 'fast'."),
    ("data.drop_last=maybe", "data.drop_last: expected true or false, got 'maybe'."),
    ("optim.betas=[a,b]", "optim.betas: expected a list of numbers, got ['a', 'b']."),
    ("optim.betas=3", "optim.betas: expected a list of numbers, got 3."),
    ("run=mine", "run: expected its keys (name, dir, seed, resume), got 'mine'. Write run.name=..."),
    ("run.name.x=3", "run.name.x: run.name is text and has no keys below it."),
    ("~training.epochs", "~training.epochs: a key of the frame cannot be taken out. Set it to a value, or to null."),
    # values out of their limits
    ("run.seed=-1", "run.seed: must be at least 0, got -1."),
    ("optim.learning_rate=0", "optim.learning_rate: must be above 0, got 0.0."),
    ("training.cached_share=2", "training.cached_share: must be at most 1, got 2.0."),
    ("training.mixed_precision=fp15", "expected one of no, bf16, fp16, got 'fp15'. Did you mean 'fp16'?"),
    ("training.mixed_precision=false", 'YAML reads a bare no as false: write "no".'),
    # components
    ("loss.temprature=1", "loss.temprature: InfoNCE has no key 'temprature'. Did you mean 'temperature'?"),
    ("loss.negatives=inbatch", "expected one of 'in_batch', 'hard_only', got 'inbatch'. Did you mean 'in_batch'?"),
    ("loss.temperature=cold", "loss.temperature: expected a number, got 'cold'."),
    ("backbone.dropout=true", "backbone.dropout: expected a number or null, got True."),
    ("~backbone.name", "backbone.name: required by TransformerBackbone, and not set. Set it with backbone.name=..."),
    ("backbone.name=???", "backbone.name: required, and not set. Set it with backbone.name=..."),
    ("pooling.hidden_size=3", "pooling.hidden_size"),
    ("~loss", "loss: required, and not set. Choose an option with loss=<name>"),
    ("pooling._target_=embedtrain.pooling.mean.Mean", "embedtrain.pooling.mean defines: MeanPooling."),
    ("pooling._target_=embedtrain.poling.mean.Mean", "there is no module embedtrain.poling.mean"),
    ("data.sources.more.path=x", "data.sources.more: has settings (path) and no _target_"),
    ("data.sources.more=3", "data.sources.more: expected a component, which is a mapping with _target_, got 3."),
    ("loss._partial_=true", "loss._partial_: of Hydra's own keys only _target_ is read."),
    # what a config may not execute
    ("trackers.x={_target_: os.system, command: ls}", "If you trust it: allow_targets=[os]"),
    ("trackers.x={_target_: embedtrain.distributed.os.system}", "there is no module embedtrain.distributed.os"),
    ("trackers.x={_target_: embedtrain.distributed.dist}", "there is no 'embedtrain.distributed.dist'"),
    ("loss.hardness={_target_: os.system}", "loss.hardness._target_: may only name something of embedtrain"),
    ("prompts.sources.a={_target_: os.system}", "prompts.sources.a._target_: no component belongs here"),
    # values that point nowhere
    ("run.name=${foo}", "Interpolation key 'foo' not found"),
    ("~trackers.wandb", "~trackers.wandb: there is no trackers.wandb in this config, so nothing to take out."),
    # options of groups
    ("loss=infoNCE", "loss=infoNCE: loss has no option 'infoNCE'. Did you mean 'infonce'? It has: "),
    ("recipe=quikstart", "Did you mean 'quickstart'?"),
    ("recipe=nope", "One of your own: recipe=path/to/file.yaml."),
    ("+loss=infonce", "+loss=...: loss has an option already; write loss=... to choose another."),
    # not key=value
    ("abc", "abc: expected key=value (recipe=quickstart, optim.learning_rate=1e-5)."),
    ("run.name=a,b", "run.name=a,b: one value is expected here. A list is written [a,b]"),
    ("run.name=[1", "run.name=[1: the value '[1' cannot be read"),
    ("hydra.run.dir=x", "hydra.run.dir=x: the run directory and the log are embedtrain's own; set run.dir."),
    # relations
    ("training.per_device_batch_size=4", "training.global_batch_size=8 and training.per_device_batch_size=4: set one"),
    ("training.global_batch_size=null", "training.global_batch_size: set it (queries per step"),
    ("training.accumulation_steps=3", "training.accumulation_steps=3 does not divide training.global_batch_size=8"),
    ("training.epochs=null", "training.epochs: set it or training.max_steps; neither is set."),
    ("data.sources.pairs=null", "data.sources: there is nothing to train on. For a file of your own: data=pairs"),
    (
        "data.path=null",
        "data.path: required, and not set. It names the file or folder to train on: data.path=pairs.jsonl",
    ),
    ("prompts.sources.other={query: x}", "prompts.sources.other: there is no source or evaluator of that name."),
    ("prompts.document='{instruction}: '", "prompts.document: {instruction} may stand in the query prompt only"),
    (
        "prompts={query: '{instruction}: ', instructions: false}",
        "prompts.query: {instruction} would stay empty with prompts.instructions=false",
    ),
    ("optim.groups.head={lr: 1}", "optim.groups.head: expected {learning_rate: ..., weight_decay: ...} or one of them"),
    ("optim.betas=[0.9]", "optim.betas: expected two numbers in [0, 1), got [0.9]."),
    ("evaluation.primary=sts/spearman", "expected <evaluator>/<metric> with an evaluator of: none."),
    ("training.evaluate_every=5", "training.evaluate_every: there is nothing to evaluate"),
    ("backbone.dtype=bfloat16", "backbone.dtype=bfloat16 is for frozen weights, but without backbone.lora"),
]


@pytest.mark.parametrize(("override", "expected"), ONE_PROBLEM, ids=[override for override, _ in ONE_PROBLEM])
def test_a_mistake_is_named_with_its_remedy(override: str, expected: str, refusal_of: Callable[..., str]) -> None:
    assert expected in refusal_of(override)


def test_all_problems_are_reported_at_once(refusal_of: Callable[..., str]) -> None:
    message = refusal_of(
        "training.epochs=abc",
        "+training.epoch=3",
        "loss.temprature=1",
        "optim.eps=-1",
        "backbone.name=???",
        "run.name=${x}",
    )
    assert message.startswith("6 problems in the configuration:\n  1. ")
    for part in (
        "got 'abc'",
        "no key 'epoch'",
        "no key 'temprature'",
        "optim.eps",
        "backbone.name: required",
        "run.name:",
    ):
        assert part in message


def test_a_missing_file_is_named_once_by_its_absolute_path(
    refusal_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal_of("recipe=finetune", "data.path=nowhere/pairs.csv")
    assert message == f"data.path: there is no file or folder {tmp_path}/nowhere/pairs.csv."


def test_the_name_of_a_data_set_on_the_hub_is_no_missing_file(warnings_of: Callable[..., list[str]]) -> None:
    assert not any("owner/name" in warning for warning in warnings_of("data.path=owner/name"))


def test_every_bad_key_of_a_recipe_is_named_with_its_file(tmp_path: Path, good: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# @package _global_\n"
        "trian: {a: 1}\n"
        "training: {lerning_rate: 3, epochs: abc, log_every: 5}\n"
        "optim: {betas: 3, groups: {head: {learning_rate: 1e-3}}}\n"
        "run: {nme: x}\n",
        encoding="utf-8",
    )
    composed = compose_config([*good, f"recipe={path}"])
    assert composed.problems == [
        f"{path}: trian: the config has no key 'trian'. Did you mean 'training'?",
        f"{path}: training.lerning_rate: training has no key 'lerning_rate'. Did you mean 'optim.learning_rate'?",
        f"{path}: training.epochs: expected a whole number or null, got 'abc'.",
        f"{path}: optim.betas: expected a list of numbers, got 3.",
        f"{path}: run.nme: run has no key 'nme'. Did you mean 'name'?",
    ]
    assert composed.config["training"]["log_every"] == 5
    assert composed.config["optim"]["groups"] == {"head": {"learning_rate": 1e-3}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a: [1", "is not valid YAML"), ("- 1", "expected `key: value` lines, got a ListConfig")],
)
def test_a_broken_recipe_file_is_named(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        compose_config([f"recipe={path}"])
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_recipe_file_that_is_not_there_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"recipe=x/mine.yaml: there is no file {tmp_path}/x/mine.yaml"):
        compose_config(["recipe=x/mine.yaml"])
