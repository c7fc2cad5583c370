"""A config that is in order, to be spoilt one key at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embedtrain.config.compose import compose_config
from embedtrain.config.validate import validate
from embedtrain.errors import ConfigError


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"query": f"q{i}", "positives": [f"p{i}"], "negatives": [f"n{i}"]} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def good(pairs: Path) -> list[str]:
    return ["data=pairs", f"data.path={pairs}", "backbone.name=some/model", "training.global_batch_size=8"]


@pytest.fixture
def warnings_of(good: list[str]) -> Callable[..., list[str]]:
    """What `validate` warns of, with overrides on top of a good config. Raises ConfigError for what it refuses."""

    def ask(*overrides: str, world: int = 1) -> list[str]:
        composed = compose_config([*good, *overrides])
        return validate(composed.config, composed.problems, world=world)

    return ask


@pytest.fixture
def refusal_of(warnings_of: Callable[..., list[str]]) -> Callable[..., str]:
    """The message with which a config is refused."""

    def ask(*overrides: str, world: int = 1) -> str:
        with pytest.raises(ConfigError) as caught:
            warnings_of(*overrides, world=world)
        return str(caught.value)

    return ask
