from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from embedtrain.config.signatures import TargetError, fits, signature, words
from tests.helpers.parameters import parameters


@pytest.mark.parametrize(
    "target",
    [
        "embedtrain.backbones.transformer.TransformerBackbone",
        "embedtrain.losses.infonce.InfoNCE",
        "embedtrain.losses.wrappers.matryoshka.Matryoshka",
        "embedtrain.data.sources.JsonLines",  # seen through the package's __init__
        "embedtrain.data.sources.pairs.PairsFile",
        "embedtrain.data.sources.tables.Csv",  # hands on to two classes
        "embedtrain.evaluation.retrieval.PairsEvaluator",
        "embedtrain.training.trackers.wandb.WandbTracker",
    ],
)
def test_the_source_says_what_the_imported_class_says(target: str) -> None:
    module, _, name = target.rpartition(".")
    __import__(module)
    real = parameters(getattr(sys.modules[module], name))
    read = signature(target).parameters
    assert list(read) == list(real)
    assert {n for n, p in read.items() if p.required} == {n for n, p in real.items() if p.default is p.empty}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("os.system", "may only name something of embedtrain or torch.optim"),
        ("embedtrainer.x.Y", "may only name something of embedtrain"),
        ("embedtrain.training.nothing.X", "there is no module embedtrain.training.nothing"),
        ("embedtrain.distributed.os.system", "there is no module embedtrain.distributed.os"),
        ("embedtrain.distributed.dist", "there is no 'embedtrain.distributed.dist'"),
        ("torch.optim.Nope", "there is no 'Nope' in torch.optim"),
        ("torch.optim.optimizer.torch", "is a module; expected a class or a function"),
    ],
)
def test_what_a_config_may_not_name_is_refused(target: str, expected: str) -> None:
    with pytest.raises(TargetError) as caught:
        signature(target)
    assert expected in str(caught.value)


def test_a_permitted_prefix_does_not_open_what_its_modules_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_company.py").write_text(
        "from os import system\n\nclass Filter:\n    def __init__(self, *, share: float, seed: int = 0): ...\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    taken = signature("my_company.Filter", allow=["my_company"])
    assert {name: p.required for name, p in taken.parameters.items()} == {"share": True, "seed": False}
    with pytest.raises(TargetError, match="which is not part of my_company"):
        signature("my_company.system", allow=["my_company"])


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, "float", True),
        (True, "int", False),
        (True, "float", False),
        (None, "int | None", True),
        ("a", "int | None", False),
        ("b", "Literal['a', 'b']", True),
        ("c", "Literal['a', 'b'] | None", False),
        (["x"], "Sequence[str]", True),
        ("x", "Sequence[str]", False),
        ([1], "list[str]", False),
        ({"a": 1}, "Mapping[str, float]", True),
        ({"a": "x"}, "dict[str, float]", False),
        ("a", "Kind", True),
        ("z", "Kind", False),
        (object(), "SomethingElse", True),
    ],
)
def test_values_are_held_against_annotations(value: object, annotation: str, expected: bool) -> None:
    aliases = {"Kind": ast.parse("Literal['a']", mode="eval").body}
    assert fits(value, ast.parse(annotation, mode="eval").body, aliases) is expected


def test_annotations_are_put_in_words() -> None:
    read = ast.parse("Sequence[int] | Literal['a', 'b'] | None", mode="eval").body
    assert words(read, {}) == "a list (each a whole number) or one of 'a', 'b' or null"
