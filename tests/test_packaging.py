"""The wheel, unpacked somewhere and used from somewhere else, has its configs and recipes with it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from embedtrain import __version__
from embedtrain.config.compose import ROOT

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PROJECT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    assert __version__ in wheel.name
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # -P: the working directory is not searched for modules; the folder of the wheel is, before the checkout.
    code = "import sys; from embedtrain.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_holds_every_config_and_recipe(site: Path) -> None:
    for folder in ("configs", "recipes"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.yaml")}
        there = {
            str(path.relative_to(site / "embedtrain/_bundled"))
            for path in (site / "embedtrain/_bundled").rglob("*.yaml")
        }
        assert here <= there


def test_recipes_are_found_from_a_foreign_directory(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "recipes")
    assert done.returncode == 0, done.stderr
    assert "quickstart\n" in done.stdout


def test_a_recipe_composes_from_a_foreign_directory(site: Path, tmp_path: Path) -> None:
    code = (
        "import embedtrain; from embedtrain.config.compose import compose_config\n"
        "from embedtrain.config.validate import validate\n"
        "composed = compose_config(['recipe=quickstart']); validate(composed.config, composed.problems)\n"
        "print(embedtrain.__file__, composed.config['run']['name'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "embedtrain/__init__.py"), "quickstart"]


def test_mistakes_are_answered_from_a_foreign_directory(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "train", "recipe=quickstart", "loss.temprature=1")
    assert done.returncode == 2
    assert done.stderr == "error: loss.temprature: InfoNCE has no key 'temprature'. Did you mean 'temperature'?\n"
