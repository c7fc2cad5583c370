"""Operations, hours and money of a plan, against sums written out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig

from embedtrain.config.compose import compose_config
from embedtrain.errors import ConfigError
from embedtrain.outlay import (
    estimate_memory,
    flops_per_step,
    hardware_rows,
    outlay,
    read_hardware,
    read_launch,
    smallest_that_fits,
)
from embedtrain.planning import Parameters, build_shapes, count_parameters, model_shapes
from tests.helpers.runs import write_pairs

H, F, L, V, P = 32, 64, 3, 100, 512


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    model = tmp_path / "model"
    shape = {"hidden_size": H, "num_hidden_layers": L, "num_attention_heads": 4, "intermediate_size": F}
    BertConfig(vocab_size=V, max_position_embeddings=P, **shape).save_pretrained(model)
    path = write_pairs(tmp_path / "pairs.jsonl")
    return ["data=pairs", f"data.path={path}", f"backbone.name={model}", "training.global_batch_size=8"]


def counted(settings: list[str], *more: str) -> tuple[dict[str, Any], Parameters]:
    config = compose_config([*settings, *more]).config
    return config, count_parameters(model_shapes(config)[0], build_shapes(config["loss"]))


LAYER = 4 * (H * H + H) + (H * F + F) + (F * H + H) + 4 * H  # attention, feed-forward, two norms
MULTIPLIED = L * LAYER + 2 * H  # and the norm of the embeddings: tables of words, positions and types are looked up


def test_rows_of_tables_are_not_multiplied(settings: list[str]) -> None:
    _, known = counted(settings)
    assert known.multiplied == known.multiplied_trainable == MULTIPLIED
    assert known.total == MULTIPLIED + (V + P + 2) * H


def test_operations_are_forward_backward_and_what_is_recomputed(settings: list[str]) -> None:
    config, known = counted(settings, "encoder.max_document_length=128", "encoder.max_query_length=16")
    forward = 2 * MULTIPLIED + 4 * L * H * 128
    assert flops_per_step(config, known, 10) == pytest.approx(10 * (2 * forward + 2 * MULTIPLIED))
    config["training"]["cached_share"] = 0.5
    assert flops_per_step(config, known, 10) == pytest.approx(10 * (2.5 * forward + 2 * MULTIPLIED))
    config["backbone"]["gradient_checkpointing"] = True
    assert flops_per_step(config, known, 10) == pytest.approx(10 * (3 * forward + 2 * MULTIPLIED))


def test_frozen_weights_cost_no_gradient_of_their_own(settings: list[str]) -> None:
    config, known = counted(settings, "encoder.train_only=[bias$]")
    biases = L * (4 * H + F + H + 2 * H) + H  # of every linear layer and norm
    assert known.multiplied_trainable == biases
    forward = 2 * MULTIPLIED + 4 * L * H * 512
    assert flops_per_step(config, known, 1) == pytest.approx(2 * forward + 2 * biases)


def test_an_objective_keeps_a_chunk_or_one_long_text_and_computes_nothing_again(settings: list[str]) -> None:
    config, known = counted(settings, "encoder.max_document_length=128", "encoder.max_query_length=16")
    config["training"] |= {"chunk_tokens": 1000, "cached_share": 0.5}
    per_token = L * (18 * H + 4 * F) * 4 // 2
    assert estimate_memory(config, known, 1e5)["activations"] == (1000 + 0.5 * 1e5) * per_token
    objective = {**config, "objective": {"_target_": "some.objective"}}
    assert estimate_memory(objective, known, 1e5)["activations"] == 1000 * per_token
    objective["training"]["chunk_tokens"] = 100
    assert estimate_memory(objective, known, 1e5)["activations"] == 128 * per_token
    forward = 2 * MULTIPLIED + 4 * L * H * 128
    assert flops_per_step(objective, known, 1) == pytest.approx(2 * forward + 2 * MULTIPLIED)


def test_weights_that_are_shared_out_are_a_part_each_and_what_is_gathered(settings: list[str]) -> None:
    """In a step two layers and what is outside of layers; in an evaluation all, where activations and gradients are not."""
    config, known = counted(settings)
    total, outside = known.total, known.total - L * LAYER
    assert known.bytes_outside == 4 * outside
    alone, shared = (estimate_memory(config, known, 1e6, sharded_over=ranks) for ranks in (1, 4))
    assert alone == {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": shared["activations"],
    }
    assert [shared[part] for part in ("weights", "gradients", "optimizer")] == [total, total, 2 * total]
    assert shared["gathered"] == 4 * outside + 2 * 4 * LAYER  # so many activations leave room for the rest of the model
    few = estimate_memory(config, known, 1, sharded_over=64)
    assert few["gathered"] == 4 * total - few["activations"] - 4 * total // 64


def test_a_launch_file_says_whether_weights_are_shared_out(tmp_path: Path) -> None:
    assert read_launch("fsdp_8gpu").sharded
    assert not read_launch("ddp_8gpu").sharded
    mine = tmp_path / "alone.yaml"
    mine.write_text("num_processes: 1\ndistributed_type: FSDP\n")
    assert not read_launch(str(mine)).sharded


def test_hours_and_money_follow_from_the_row() -> None:
    row = read_hardware("a100_80gb")
    found = outlay(1e15, 1000, 8, "bf16", row)
    assert found.hours == pytest.approx(1e18 / (8 * 312e12 * 0.4) / 3600)
    assert found.dollars == pytest.approx(found.hours * 8 * row.dollars)  # type: ignore[operator]
    slow = outlay(1e15, 1000, 8, None, row)
    assert slow.hours == pytest.approx(found.hours * 312 / 19.5)  # type: ignore[operator]
    assert outlay(1e15, None, 8, "bf16", row).hours is None


def test_the_smallest_device_that_fits_leaves_a_tenth_free() -> None:
    assert smallest_that_fits(21.6e9).name in ("rtx_4090", "l4")  # type: ignore[union-attr]
    assert smallest_that_fits(21.7e9).memory > 24  # type: ignore[union-attr]
    assert smallest_that_fits(1e15) is None
    assert min(hardware_rows().values(), key=lambda row: row.memory).fits(1.0)


def test_a_launch_file_is_read_by_name_and_by_path(tmp_path: Path) -> None:
    assert (read_launch("ddp_8gpu").world, read_launch("ddp_8gpu").mixed_precision) == (8, "bf16")
    mine = tmp_path / "mine.yaml"
    mine.write_text("num_processes: 3\nmixed_precision: fp16\n")
    assert read_launch(str(mine)).world == 3


@pytest.mark.parametrize(
    ("read", "name", "said"),
    [
        (read_launch, "nowhere", r"launch=nowhere: there is no file .*one of cpu_2, ddp_8gpu"),
        (read_launch, "hardware", r"is no accelerate config: it says no num_processes"),
        (read_hardware, "abacus", r"hardware=abacus: expected one of h200, h100"),
    ],
)
def test_what_is_not_there_is_refused_by_name(read: Any, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(name)


def test_a_row_with_another_key_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("toy: {memory: 1, bf16: 1, fp32: 1, dollars: 1, colour: 2}\n")
    with pytest.raises(ConfigError, match=r"expected rows of \{memory, bf16, fp32, dollars\}"):
        read_hardware(f"{mine}:toy")
    mine.write_text("toy: {memory: 1, bf16: 2, fp32: 3, dollars: 4}\n")
    assert vars_of(read_hardware(f"{mine}:toy")) == SimpleNamespace(memory=1, bf16=2, fp32=3, dollars=4)


def vars_of(row: Any) -> SimpleNamespace:
    return SimpleNamespace(memory=row.memory, bf16=row.bf16, fp32=row.fp32, dollars=row.dollars)
