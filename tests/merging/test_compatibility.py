"""What does not belong together is refused by name, before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from embedtrain.errors import ConfigError
from embedtrain.merging.compatibility import refuse_incompatible
from embedtrain.merging.inputs import Model, read_base, read_model
from embedtrain.tensor_file import TensorFile
from tests.helpers.models import tiny_model_dir
from tests.merging.folders import write_model


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    def never(self: TensorFile, name: str) -> None:
        raise AssertionError(f"{name} was read")

    folders = write_model(tmp_path, "a", seed=1), write_model(tmp_path, "b", seed=2)
    monkeypatch.setattr(TensorFile, "__getitem__", never)
    return folders


def models(*folders: Path) -> list[Model]:
    return [read_model(str(folder), folder / "scratch") for folder in folders]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_models_of_one_kind_pass(pair: tuple[Path, Path]) -> None:
    # How a model was made is no difference.
    change(pair[1] / "config.json", dtype="bfloat16", transformers_version="5.0", hidden_dropout_prob=0.3)
    refuse_incompatible(models(*pair), None)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"num_attention_heads": 2}, r"num_attention_heads in config.json is 2 there and 4 here"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "q: "}},
            r"prompts.query is 'q: ' there and '' here",
        ),
        ("sentence_bert_config.json", {"max_seq_length": 32}, r"max_query_length is 32 there and 64 here"),
        ("sentence_bert_config.json", {"do_lower_case": True}, r"lower_case is True there and False here"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True},
            r"pooling.name is 'max' there and 'mean' here",
        ),
        ("1_Pooling/config.json", {"include_prompt": False}, r"pooling.include_prompt is False there and True here"),
    ],
)
def test_a_setting_that_differs_is_named(file: str, values: Any, message: str, pair: tuple[Path, Path]) -> None:
    change(pair[1] / file, **values)
    with pytest.raises(ConfigError, match=f"models: {pair[1]} and {pair[0]} cannot be merged: {message}|{message}"):
        refuse_incompatible(models(*pair), None)


def test_everything_that_differs_is_said_at_once(pair: tuple[Path, Path]) -> None:
    change(pair[1] / "sentence_bert_config.json", max_seq_length=32)
    modules = json.loads((pair[1] / "modules.json").read_text())
    (pair[1] / "modules.json").write_text(json.dumps(modules[:2]))
    with pytest.raises(ConfigError) as error:
        refuse_incompatible(models(*pair), None)
    assert "3 problems" in str(error.value)
    assert "pooling.normalize is False there and True here" in str(error.value)


def test_another_vocabulary_and_another_way_to_read_text_are_named(pair: tuple[Path, Path]) -> None:
    path = pair[1] / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    path.write_text(json.dumps(tokenizer))
    change(pair[1] / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(ConfigError) as error:
        refuse_incompatible(models(*pair), None)
    assert "the tokenizers differ in 2 tokens: 'cat' is 3899 there and 4937 here." in str(error.value)
    assert "the tokenizers differ in normalizer.lowercase: false there and true here" in str(error.value)


def test_tensors_that_are_missing_more_or_of_another_shape_are_named(pair: tuple[Path, Path]) -> None:
    path = pair[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["extra"] = tensors.pop("encoder.layer.0.output.dense.weight")
    tensors["encoder.layer.1.output.dense.bias"] = tensors["encoder.layer.1.output.dense.bias"][:5].clone()
    save_file(tensors, path)
    with pytest.raises(ConfigError) as error:
        refuse_incompatible(models(*pair), None)
    assert "it lacks encoder.layer.0.output.dense.weight." in str(error.value)
    assert "it alone has extra." in str(error.value)
    assert "encoder.layer.1.output.dense.bias has shape [5] there and [32] here." in str(error.value)


def test_a_base_needs_no_pooling(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = read_base(tiny_model_dir("bert", tmp_path / "base"), tmp_path / "scratch")
    assert base.settings is None
    refuse_incompatible(models(*pair), base)


def test_a_base_of_another_kind_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tiny_model_dir("bert", tmp_path / "base", num_hidden_layers=1)
    with pytest.raises(ConfigError) as error:
        refuse_incompatible(models(*pair), read_base(folder, tmp_path / "scratch"))
    assert f"base: {folder} is not what {pair[0]} was trained from: num_hidden_layers in config.json is 1" in str(
        error.value
    )
    assert "it lacks encoder.layer.1.attention.output.LayerNorm.bias" in str(error.value)


def test_a_base_without_a_head_that_the_models_have_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path, "a", "encoder.projection_dim=8")
    with pytest.raises(ConfigError, match=r"it lacks 2_Dense/linear\.(bias|weight), 2_Dense/linear\.(bias|weight)\."):
        refuse_incompatible(models(model), read_base(str(tmp_path / "model"), tmp_path / "scratch"))
