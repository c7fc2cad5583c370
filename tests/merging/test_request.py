"""The words of a merge: on the command line, and in a file as mergekit reads it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from embedtrain.config.build import build
from embedtrain.config.merging import METHODS, MergeRequest, take_request
from embedtrain.errors import ConfigError


def test_a_command_line_is_taken_apart() -> None:
    words = [
        "method=ties",
        "base=b",
        "models=[runs/a,runs/b]",
        "weight=[1,0.5]",
        "density=1e-1",
        "lambda=0.7",
        "dtype=bfloat16",
    ]
    rest = ["data=pairs", "data.path=x.jsonl", "loss=infonce", "source@data.sources.y=jsonl", "run.seed=1"]
    overrides = [*words, *rest]
    assert take_request(overrides) == MergeRequest(
        method="ties",
        models=("runs/a", "runs/b"),
        base="b",
        parameters={"weight": [1, 0.5], "density": 0.1, "lambda_": 0.7},
        dtype="bfloat16",
    )
    assert overrides == rest


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_by_its_name_and_explains_its_parameters(name: str) -> None:
    method = build({"_target_": METHODS[name].target})
    explained = inspect.getdoc(type(method)) or ""
    for parameter in inspect.signature(type(method)).parameters:
        assert f"\n{parameter.removesuffix('_')} " in explained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models=[a,b]"], "method: required, and not set. One of linear, slerp"),
        (["method=slrp", "models=[a,b]"], "method=slrp: there is no such method. Did you mean 'slerp'?"),
        (["method=slerp"], r"models: expected run directories, .* got None"),
        (["method=slerp", "models=[a]"], "models: slerp wants at least two, got a"),
        (["method=ties", "models=[a,b]"], "base: required by ties: what all models were trained from"),
        (
            ["method=slerp", "models=[a,b]", "base=c"],
            "base=c: slerp reads no base. Leave it out, or use one of task_arithmetic",
        ),
        (
            ["method=ties", "models=[a]", "base=c", "densty=1"],
            "densty: ties has no parameter 'densty'. Did you mean 'density'?",
        ),
        (["method=linear", "models=[a,b]", "weight=x"], "weight: expected a number or a list .*, got 'x'"),
        (["method=linear", "models=[a,b]", "dtype=int8"], "dtype=int8: expected one of float32, bfloat16, float16"),
        (["method=linear", "models=[a,b]", "weight=1,2"], "weight=1,2: one value is expected here"),
    ],
)
def test_a_request_that_cannot_be_had_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_request(words)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems"):
        take_request(["method=ties", "models=[a,b]", "t=1", "density=x"])


# ------------------------------------------------------------------------------------------------------- mergekit


def read(folder: Path, text: str, *words: str) -> MergeRequest:
    (folder / "merge.yaml").write_text(text, encoding="utf-8")
    return take_request([f"config={folder / 'merge.yaml'}", *words])


def test_a_file_of_mergekit_is_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        merge_method: dare_ties
        base_model: base
        models:
          - model: base
          - {model: a, parameters: {weight: 1.0}}
          - {model: b, parameters: {weight: 0.5, density: 0.3}}
        parameters: {normalize: true, lambda: 0.9, int8_mask: true, density: 0.6}
        dtype: bfloat16
        """,
    )
    assert found == MergeRequest(
        method="dare_ties",
        models=("a", "b"),
        base="base",
        parameters={"weight": [1.0, 0.5], "density": [0.6, 0.3], "lambda_": 0.9, "normalize": True},
        dtype="bfloat16",
    )


def test_what_the_file_leaves_out_is_as_mergekit_has_it(tmp_path: Path) -> None:
    models = "[{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]"
    text = f"{{merge_method: ties, base_model: c, models: {models}}}"
    assert read(tmp_path, text).parameters == {"density": 1.0, "weight": [1, 2]}


def test_slerp_begins_with_the_base_of_the_file(tmp_path: Path) -> None:
    text = "{merge_method: slerp, base_model: b, models: [{model: a}, {model: b}], parameters: {t: 0.3}}"
    found = read(tmp_path, text)
    assert (found.models, found.base, found.parameters) == (("b", "a"), None, {"t": 0.3})


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    text = "{merge_method: linear, models: [{model: a}, {model: b}], parameters: {normalize: false}}"
    assert read(tmp_path, text, "normalize=true").parameters == {"normalize": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{merge_method: linear, slices: []}", "merge.yaml: slices: cannot be read here"),
        ("{models: []}", "expected a merge_method and models"),
        ("[1]", "expected a merge_method and models"),
        ("{merge_method: linear, models: [a]}", r"models\[0\]: expected \{model: ..., parameters: ...\}, got 'a'"),
        (
            "{merge_method: ties, base_model: c, models: [{model: a, parameters: {weight: [1, 2]}}]}",
            "models.a.weight: one number for a whole model is read; values by layer or by name of the tensor are not",
        ),
        (
            "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b}]}",
            "models: some have the parameter weight, others have not",
        ),
        (
            "{merge_method: model_stock, models: [{model: a}, {model: b}]}",
            "method=model_stock: there is no such method",
        ),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_so_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"config=nowhere.yaml: there is no file"):
        take_request(["config=nowhere.yaml"])


def test_the_words_are_judged_without_torch() -> None:
    code = (
        "import sys; from embedtrain.config.merging import take_request; take_request(['method=slerp', 'models=[a,b]']); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
