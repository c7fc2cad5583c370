from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from embedtrain import cli
from embedtrain.config.compose import compose_config
from embedtrain.errors import ConfigError, EmbedtrainError
from embedtrain.planning import Parameters, build_shapes, count_parameters, make_plan, model_shapes
from tests.helpers.models import tiny_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and no weights."""
    folder = tmp_path_factory.mktemp("model")
    BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def good(model: Path, tmp_path: Path) -> list[str]:
    rows = [{"query": f"q{i}", "positives": [f"p{i}"], "negatives": [f"n{i}", f"m{i}"]} for i in range(50)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["data=pairs", f"data.path={path}", f"backbone.name={model}", "training.global_batch_size=16"]


def config(good: list[str], *overrides: str) -> dict[str, Any]:
    return compose_config([*good, *overrides]).config


def parameters(chosen: dict[str, Any]) -> Parameters:
    return count_parameters(model_shapes(chosen)[0], build_shapes(chosen["loss"]))


def test_parameters_are_those_of_the_built_model(good: list[str], model: Path) -> None:
    from transformers import AutoConfig, AutoModel

    real = AutoModel.from_config(AutoConfig.from_pretrained(model), add_pooling_layer=False)
    expected = sum(p.numel() for p in real.parameters())
    counted = parameters(config(good))
    assert (counted.total, counted.trainable, counted.bytes) == (expected, expected, 4 * expected)
    with_head = parameters(config(good, "encoder.projection_dim=8", "loss.learn_temperature=true"))
    assert with_head.total == expected + (32 * 8 + 8) + 1
    assert with_head.embedding_dim == 8


def test_only_adapters_train_with_lora(good: list[str]) -> None:
    counted = parameters(config(good, "backbone.lora={r: 2, target_modules: [query]}"))
    assert counted.trainable == 3 * 2 * (32 + 32)
    assert counted.total - counted.trainable == parameters(config(good)).total


def test_negatives_are_counted_by_where_they_come_from(good: list[str]) -> None:
    plan = make_plan(config(good), world=4)
    # 16 queries on 4 ranks, each with 1 positive and 2 hard negatives
    assert (plan.negatives.hard, plan.negatives.in_batch, plan.negatives.cross_device) == (2, 3 * 3, 12 * 3)
    assert plan.negatives.total == 16 * 3 - 1
    accumulated = make_plan(config(good, "training.accumulation_steps=2"), world=4)
    assert accumulated.negatives.total == 8 * 3 - 1
    hard_only = make_plan(config(good, "loss.negatives=hard_only"), world=4)
    assert hard_only.negatives.total == 2
    one = make_plan(config(good, "data.num_negatives=1"), world=1)
    assert (one.negatives.hard, one.negatives.in_batch) == (1, 15 * 2)


def test_a_batch_holds_no_more_queries_than_there_are(good: list[str]) -> None:
    assert make_plan(config(good, "training.global_batch_size=64"), world=1).negatives.total == 50 * 3 - 1


def test_steps_are_those_that_the_sampler_makes(good: list[str]) -> None:
    from embedtrain.assemble import build_sources
    from embedtrain.data.mixture import Mixture
    from embedtrain.data.sampling import Sampler

    for overrides in ([], ["data.drop_last=true"], ["data.batching=blended"]):
        chosen = config(good, "training.epochs=3", *overrides)
        plan = make_plan(chosen, world=1)
        mixture = Mixture(sources=build_sources(chosen), batching=chosen["data"]["batching"])
        sampler = Sampler(mixture, seed=0, global_batch_size=16, drop_last=chosen["data"]["drop_last"])
        assert plan.steps_per_epoch == sampler.steps_per_epoch
        assert plan.steps == 3 * sampler.steps_per_epoch
    assert make_plan(config(good, "training.max_steps=7"), world=1).steps == 7


def test_a_run_of_no_step_has_no_gradient_and_no_optimizer(good: list[str]) -> None:
    plan = make_plan(config(good, "training.max_steps=0"), world=1)
    assert plan.steps == 0
    assert plan.memory is not None
    assert plan.memory["gradients"] == plan.memory["optimizer"] == 0


def test_tokens_are_bounded_by_the_lengths(good: list[str]) -> None:
    plan = make_plan(config(good, "encoder.max_query_length=10", "encoder.max_document_length=100"), world=1)
    assert plan.tokens_per_step == 16 * (10 + 3 * 100)


def test_memory_follows_its_formula(good: list[str]) -> None:
    lengths = ("encoder.max_query_length=10", "encoder.max_document_length=100", "training.chunk_tokens=100")
    plan = make_plan(config(good, *lengths), world=1)
    assert plan.parameters is not None
    assert plan.memory is not None
    per_token = 3 * (18 * 32 + 4 * 64) * 2  # layers * (18 H + 4 I) * b / 2 with b = 4
    assert plan.memory == {
        "weights": plan.parameters.bytes,
        "gradients": 4 * plan.parameters.total,
        "optimizer": 8 * plan.parameters.total,
        "activations": 16 * 310 * per_token,
    }
    cached = make_plan(config(good, *lengths, "training.cached_share=1.0"), world=1)
    assert cached.memory is not None
    assert cached.memory["activations"] == 100 * per_token
    on_four = make_plan(config(good, *lengths), world=4)
    assert on_four.memory is not None
    assert on_four.memory["activations"] == 4 * 310 * per_token


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("backbone.lora={rank: 8}", r"backbone\.lora: .*rank"),
        ("backbone.soft_mask={steps: 3}", r"backbone\.soft_mask"),
        ("backbone.quantise={bits: 5}", r"backbone\.quantise.*5"),
    ],
)
def test_a_setting_that_the_model_cannot_have_is_no_gap_of_the_plan(good: list[str], setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(config(good, setting), world=1)


def test_the_rest_of_the_plan_stands_where_the_model_cannot_be_had(
    good: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = make_plan(config(good, f"backbone.name={tmp_path}/none"), world=1)
    assert plan.parameters is None
    assert plan.memory is None
    assert plan.unknown[0].startswith(f"parameters and memory: backbone.name: '{tmp_path}/none'")
    assert plan.steps == 3
    assert any(line.startswith("unknown") for line in plan.lines())


def test_steps_that_are_set_are_known_where_no_row_can_be_read(
    good: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    away = (
        "source@data.sources.away=huggingface",
        "data.sources.away.path=nobody/nothing",
        "data.sources.pairs=null",
    )
    said = {
        steps: make_plan(config(good, *away, f"training.max_steps={steps}"), world=1).lines() for steps in (7, "null")
    }
    assert any(line.split() == ["steps", "7"] for line in said[7])
    assert any(
        line.startswith("unknown            rows, and steps per epoch: the data set nobody/nothing") for line in said[7]
    )
    assert not any(line.startswith("steps ") for line in said["null"])
    assert any(line.startswith("unknown            steps: the data set nobody/nothing") for line in said["null"])


def test_check_as_json_is_json_alone(good: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *good, "world=4", "output=json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["negatives"]["total"] == 47
    assert said["plan"]["world"] == 4
    assert said["config"] == config(good)
    assert said["origins"]["loss.temperature"] == "loss/infonce"
    assert said["warnings"]


def test_check_shows_where_each_value_is_from(good: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *good, "loss.temperature=0.1"]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "temperature: 0.1 # command line" in lines
    assert "loss: # loss/infonce" in lines
    assert "optim: # default" in lines
    assert "steps 3, 3 per epoch of 50 rows" in lines


def two_sources(good: list[str], tmp_path: Path) -> list[str]:
    """The 50 pairs with 2 hard negatives each, and 30 graded pairs with a batch size and lengths of their own."""
    rows = [{"query": f"a{i}", "doc": f"b{i}", "score": i % 6} for i in range(30)]
    path = tmp_path / "graded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        *good,
        "loss=routed",
        "+loss@loss.losses.sts=cosent",
        "source@data.sources.sts=jsonl",
        f"data.sources.sts.path={path}",
        "data.sources.sts.columns={query: query, positives: doc, scores: score}",
        "data.sources.sts.score_range=[0,5]",
        "data.sources.sts.batch_size=10",
        "data.sources.sts.max_query_length=20",
        "data.sources.sts.max_document_length=30",
        "encoder.max_query_length=10",
        "encoder.max_document_length=100",
    ]


def test_each_source_is_planned_by_its_own_settings(good: list[str], tmp_path: Path) -> None:
    plan = make_plan(config(two_sources(good, tmp_path)), world=2)
    pairs, sts = plan.sources["pairs"], plan.sources["sts"]
    assert (sts.rows, sts.steps_per_epoch, sts.queries_per_step, sts.tokens_per_step) == (30, 3, 10, 10 * (20 + 30))
    assert (pairs.steps_per_epoch, pairs.queries_per_step, pairs.tokens_per_step) == (3, 16, 16 * (10 + 3 * 100))
    assert sts.negatives is None  # CoSENT contrasts no query with documents of others
    assert pairs.negatives is not None
    assert (pairs.negatives.hard, pairs.negatives.in_batch, pairs.negatives.cross_device) == (2, 7 * 3, 8 * 3)
    assert plan.negatives == pairs.negatives
    assert (plan.steps_per_epoch, plan.rows, plan.tokens_per_step) == (6, 80, pairs.tokens_per_step)
    lines = plan.lines()
    assert "  sts              3 steps per epoch of 10 queries, at most 500 tokens per step" in lines
    assert json.loads(json.dumps(plan.as_dict()))["sources"]["pairs"]["negatives"]["total"] == 47


def test_of_hundreds_of_sources_people_are_told_some_and_how_many_more(good: list[str], tmp_path: Path) -> None:
    plan = make_plan(config(two_sources(good, tmp_path)), world=2)
    many = replace(plan, sources={f"medi/{number}": plan.sources["sts"] for number in range(300)})
    told = [line for line in many.lines() if line.startswith("  ")]
    assert len(told) == 41
    assert told[-1] == "  and 260 more sources: see output=json"
    assert len(many.as_dict()["sources"]) == 300


def test_draws_of_a_source_are_counted_by_its_own_numbers(good: list[str]) -> None:
    plan = make_plan(config(good, "data.sources.pairs.num_negatives=1", "data.num_negatives=2"), world=1)
    assert plan.negatives is not None
    assert (plan.negatives.hard, plan.negatives.in_batch) == (1, 15 * 2)


def test_a_blended_batch_is_planned_in_the_proportions_of_an_epoch(good: list[str], tmp_path: Path) -> None:
    overrides = ("data.batching=blended", "data.sources.sts.batch_size=null")
    plan = make_plan(config(two_sources(good, tmp_path), *overrides), world=1)
    assert plan.sources == {}
    assert plan.steps_per_epoch == 5  # 80 rows in batches of 16
    assert plan.tokens_per_step == round(16 * (50 * (10 + 3 * 100) + 30 * (20 + 30)) / 80)
    assert plan.negatives is not None
    assert plan.negatives.hard == pytest.approx(2 * 50 / 80)


def test_a_batch_of_several_sources_is_planned_with_the_longest_of_them(good: list[str], tmp_path: Path) -> None:
    overrides = ("data.sources_per_batch=2", "data.sources.sts.batch_size=null")
    plan = make_plan(config(two_sources(good, tmp_path), *overrides), world=1)
    assert plan.sources == {}
    assert plan.steps_per_epoch == 5  # 6 parts of pairs and 4 of sts, 8 rows each
    assert plan.tokens_per_step == round(16 * ((10 + 3 * 100) + (20 + 30)) / 2)
    told = "(pairs is more than 1/2 of all: 1 of its 6 parts share a batch with another of its own)"
    assert f"sources            2 in each batch, 8 queries of each {told}" in plan.lines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.sts.max_document_length=600", "sts.max_document_length=600: the backbone knows 128 positions"),
        ("data.sources.sts.max_query_length=2", "sts.max_query_length=2 leaves no token for text"),
        ("data.sources.sts.texts_per_label=5", "sts.texts_per_label=5: 30 of 30 rows have no label"),
        ("data.sources.sts.score_range=[0,4]", "graded.jsonl:6: the score 5 is not in score_range="),
    ],
)
def test_settings_of_a_source_that_its_rows_or_the_model_cannot_meet_are_refused(
    good: list[str], tmp_path: Path, model: Path, override: str, message: str
) -> None:
    # A tokenizer beside the configuration, so that the encoder can be put together.
    whole = f"backbone.name={tiny_model_dir('bert', model.parent / 'whole')}"
    try:
        said = make_plan(config([*two_sources(good, tmp_path), whole], override), world=1).unknown
    except EmbedtrainError as error:
        said = [str(error)]
    assert message in "\n".join(said)


def test_a_contextual_backbone_has_two_encoders_and_reads_its_context_with_every_text(good: list[str]) -> None:
    lengths = ("encoder.max_query_length=64", "encoder.max_document_length=64")
    sizes = ("backbone=contextual", "backbone.num_context=6", "backbone.num_prompts=2")
    one, two = (make_plan(config(good, *lengths, *more), world=1) for more in ((), sizes))
    around = (
        2 * (32 * 32 + 32) + (32 * 32 + 32) + (32 * 64 + 64) + 32
    )  # of the context, the learned vectors, the null vector
    assert two.parameters.total == 2 * one.parameters.total + around
    assert two.tokens_per_step == one.tokens_per_step + 16 * 4 * (6 + 2)  # 16 queries with 3 documents each
    assert two.outlay.flops_per_step > 2 * one.outlay.flops_per_step


def test_ranks_that_share_no_negatives_have_a_neighbourhood_each(good: list[str]) -> None:
    settings = ("training.gather=false", "neighbourhoods@data.neighbourhoods=kmeans")
    plan = make_plan(config(good, *settings), world=4)
    assert plan.negatives is not None
    assert (plan.negatives.hard, plan.negatives.in_batch, plan.negatives.cross_device) == (2, 3 * 3, 0)
    assert "clusters: pairs 13" in str(plan.neighbourhoods)  # 50 rows, 4 of a rank
    with pytest.raises(EmbedtrainError, match=r"multiple of 3"):
        make_plan(config(good, *settings), world=3)
