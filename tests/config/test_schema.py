from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from embedtrain.config.difference import FREE
from embedtrain.config.explain import ELSEWHERE
from embedtrain.config.schema import Config, settings
from embedtrain.config.validate import COLLECTIONS, COMPONENTS


@pytest.mark.parametrize("key", settings())
def test_every_setting_says_what_it_means(key: str) -> None:
    meaning = settings()[key].metadata["meaning"]
    assert meaning[0].isupper() or meaning.split(":")[0] in settings()[key].metadata["choices"]
    assert meaning.endswith(".")


def test_defaults_are_not_shared_between_configs() -> None:
    Config().optim.betas.append(1.0)
    assert Config().optim.betas == [0.9, 0.999]


def test_keys_named_in_messages_and_tables_exist() -> None:
    parts = {".".join(key.split(".")[:n]) for key in settings() for n in (1, 2, 3)}
    named = [key for text in ELSEWHERE.values() for key in re.findall(r"\b[a-z]+\.[a-z_]+", text)]
    for key in [*named, *FREE, *COMPONENTS, *COLLECTIONS]:
        inside = any(key == component or key.startswith(f"{component}.") for component in COMPONENTS)
        assert inside or key in parts, key


@pytest.mark.parametrize(
    "code",
    [
        "import embedtrain, embedtrain.config.compose, embedtrain.config.validate, embedtrain.config.build",
        "import embedtrain.cli, embedtrain.run",
        "from embedtrain.cli import main; assert main(['--help']) == 0",
        "from embedtrain.cli import main; assert main(['recipes']) == 0",
        "from embedtrain.cli import train; assert train(['recipe=quickstart', 'training.epoch=3', 'loss.t=1']) == 2",
        "from embedtrain.cli import main; assert main(['train', 'recipe=nope']) == 2",
    ],
)
def test_help_and_config_errors_need_no_torch(code: str) -> None:
    code += "; import sys; assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_config_error_takes_less_than_a_second_of_work() -> None:
    code = "import sys; from embedtrain.cli import train; sys.exit(train(['recipe=quickstart', 'training.epoch=3']))"
    before = os.times()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2
    after = os.times()
    # The child's own time: what else the machine does at the moment is not its fault.
    assert (after.children_user - before.children_user) + (after.children_system - before.children_system) < 1.0
