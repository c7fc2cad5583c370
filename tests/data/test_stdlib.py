import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from embedtrain.data import stdlib
from embedtrain.data.sources import BeirFolder
from embedtrain.data.stdlib import StandardLibraryPairs, prepare, read_pairs
from embedtrain.errors import DataError

MODULE = '''\
"""Docstring of the module, which is no pair."""

class Box:
    def open(self, lid):
        """Open the box at its lid.

        More about it.
        """
        def inner():
            """The docstring of an inner function."""
            return lid  # käse
        return inner()

    def short(self):
        """Too few words."""
        return self.x + self.y

    def empty(self):
        """A function that has no body at all."""

def one_line(a): """All of it on one line."""; return a + a + a

def again(a):
    """Open the box at its lid."""
    return None if a else a
'''


@pytest.fixture
def library(tmp_path) -> Path:
    root = tmp_path / "lib"
    (root / "package/tests").mkdir(parents=True)
    (root / "module.py").write_text(MODULE, "utf-8")
    (root / "package/tests/test_x.py").write_text(MODULE, "utf-8")
    (root / "broken.py").write_text("def f(:", "utf-8")
    (root / "copy.py").write_text(MODULE, "utf-8")
    return root


def test_pairs_of_a_module(library):
    by_query = {pair.query: pair for pair in read_pairs(library)}
    assert sorted(by_query) == [
        "All of it on one line.",
        "Open the box at its lid.",
        "The docstring of an inner function.",
    ]
    first = by_query["Open the box at its lid."]
    assert first.place == "copy.py:4"
    assert first.code == ("def open(self, lid):\n    def inner():\n        return lid  # käse\n    return inner()")
    assert by_query["All of it on one line."].code == "def one_line(a): return a + a + a"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return prepare(str(tmp_path_factory.mktemp("pairs") / "stdlib"))


def test_the_real_library_gives_thousands_of_pairs(made):
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["pairs"]["train"] > 3000
    assert manifest["pairs"]["dev"] > 300
    assert manifest["pairs"]["test"] > 300
    assert manifest["licence"].startswith("PSF-2.0")


def test_no_module_no_query_and_no_document_is_on_two_sides(made):
    manifest = json.loads((made / "manifest.json").read_text())
    modules = [set(names) for names in manifest["modules"].values()]
    assert sum(map(len, modules)) == len(set.union(*modules))
    sides = [StandardLibraryPairs(split=split, folder=str(made)) for split in ("train", "dev", "test")]
    for part in (lambda e: e.query, lambda e: e.positives[0]):
        texts = [part(example) for side in sides for example in side]
        assert len(texts) == len(set(texts)) == sum(manifest["pairs"].values())


def test_documents_hold_no_docstring_and_are_code(made):
    source = StandardLibraryPairs(folder=str(made), limit=400)
    for example in source:
        (code,) = example.positives
        assert example.query not in " ".join(code.split())
        assert "def " in code
    parsed = 0
    for example in source:
        try:
            ast.parse(example.positives[0])
            parsed += 1
        except SyntaxError:
            pass
    assert parsed > 380


def test_the_held_out_folder_is_a_beir_folder(made):
    dev = BeirFolder(path=str(made / "heldout"), split="dev")
    assert len(dev.index) == json.loads((made / "manifest.json").read_text())["pairs"]["dev"]


def test_what_is_there_is_not_made_again(made, monkeypatch):
    monkeypatch.setattr(stdlib, "read_pairs", lambda: pytest.fail("made again"))
    assert prepare(str(made)) == made


def test_pairs_go_to_the_cache_of_the_user_whole_or_not_at_all(tmp_path, monkeypatch, library):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stdlib, "read_pairs", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare()
    assert list((tmp_path / "cache/embedtrain").iterdir()) == []
    monkeypatch.setattr(stdlib, "read_pairs", lambda: read_pairs(library))
    assert prepare().parent == tmp_path / "cache/embedtrain"


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="is not empty and has no manifest"):
        prepare(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_command_says_what_it_wrote(made):
    command = [sys.executable, "-m", "data_pipelines.stdlib_docstrings", "--out", str(made)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{made}: train ")
