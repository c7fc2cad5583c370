"""Who may import whom: each layer stands on those below it, and each rule of the house is one assertion."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "embedtrain"

# A part may import itself and what stands in its row. Modules at the top level are parts of their own.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "distributed": {"types"},
    "sharding": {"errors", "distributed", "tensor_file"},
    "tensor_file": {"errors"},
    "gaussian": set(),
    "config": {"errors"},
    "log": set(),
    "environment": {"config"},
    "run": {"config", "distributed", "environment", "errors", "log"},
    "pooling": {"errors", "types", "distributed", "gaussian"},
    "backbones": {"errors", "types", "distributed"},
    "losses": {"errors", "types", "distributed", "gaussian"},
    "data": {"errors", "types", "distributed"},
    "encoder": {"errors", "types", "distributed", "backbones", "pooling", "data"},
    "evaluation": {"errors", "types", "distributed", "encoder", "data"},
    "export": {"errors", "types", "distributed", "encoder", "backbones", "pooling", "data"},
    "store": {"errors", "types", "distributed", "data"},
    "mining": {
        "errors",
        "types",
        "distributed",
        "config",
        "environment",
        "data",
        "encoder",
        "store",
        "evaluation",
        "export",
        "assemble",
    },
    "teachers": {"errors", "types", "distributed", "data", "encoder", "export", "losses", "store"},
    "objectives": {"errors", "types", "backbones", "data", "encoder"},
    "assemble": {"errors", "types", "config", "backbones", "pooling", "data", "encoder", "evaluation", "export"},
    "whitening": {"errors", "encoder"},
    "inference": {"errors", "types", "distributed", "assemble", "evaluation", "export", "teachers"},
    "pinned": {"errors", "config", "backbones"},
    "outlay": {"errors", "config"},
    "planning": {
        "errors",
        "types",
        "config",
        "backbones",
        "data",
        "encoder",
        "losses",
        "assemble",
        "teachers",
        "pinned",
        "outlay",
        "sharding",
    },
    "smoke": {"errors", "config", "backbones", "data", "pinned"},
    "training": {
        "errors",
        "types",
        "distributed",
        "config",
        "backbones",
        "data",
        "losses",
        "encoder",
        "evaluation",
        "export",
        "assemble",
        "teachers",
        "store",
        "mining",
        "run",
        "sharding",
        "tensor_file",
        "whitening",
    },
    "merging": {
        "errors",
        "types",
        "config",
        "backbones",
        "data",
        "encoder",
        "losses",
        "evaluation",
        "export",
        "assemble",
        "tensor_file",
        "training",
    },
    "__main__": {"cli"},
    "cli": {"errors", "config", "commands"},
    "commands": {
        "errors",
        "config",
        "distributed",
        "run",
        "planning",
        "outlay",
        "smoke",
        "inference",
        "mining",
        "training",
        "merging",
        "assemble",
        "evaluation",
        "export",
        "encoder",
        "log",
    },
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_bundled" not in path.parts)
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def part(module: str) -> str:
    """`embedtrain.losses.infonce` -> `losses`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, also those inside functions. Imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole path of an import"
            for name in node.names:
                yield f"{node.module}.{name.name}", node.lineno


def own_part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_downwards(path: Path) -> None:
    me = own_part(path)
    if me == "__init__":
        assert not list(imports(path)), "importing embedtrain must cost nothing"
        return
    assert me in ALLOWED, f"{me} is a new part: say in ALLOWED what it stands on"
    for module, line in imports(path):
        if module.split(".")[0] == "embedtrain" and part(module) not in ("", me, "__version__"):
            assert part(module) in ALLOWED[me], f"{path.name}:{line}: {me} must not import {module}"


def test_the_layers_have_an_order() -> None:
    order = list(TopologicalSorter(ALLOWED).static_order())  # raises CycleError where there is none
    assert order.index("losses") < order.index("training") < order.index("cli")
    assert order.index("data") < order.index("mining") < order.index("training")


def _users(*modules: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for name, _ in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    }


def test_what_knows_torch_distributed() -> None:
    """The ranks, and the weights that they share out. Nothing else."""
    assert _users("torch.distributed") == {"distributed.py", "sharding.py"}


def test_of_mining_the_command_alone_knows_a_config() -> None:
    """Miner, searches, rescorers and filters are components; the command puts them together."""
    knowing = _users("embedtrain.config", "embedtrain.assemble")
    assert {name for name in knowing if name.startswith("mining/")} == {"mining/command.py"}


def test_components_know_neither_hydra_nor_accelerate() -> None:
    components = ("pooling", "backbones", "losses", "data", "evaluation", "export", "mining", "encoder.py")
    knowing = _users("hydra", "omegaconf", "accelerate")
    # The report is no component: it reads a run directory, config.yaml included.
    assert not [name for name in knowing if name.startswith(components) and not name.startswith("evaluation/report")]


def test_one_place_instantiates() -> None:
    assert _users("hydra.utils") == {"config/build.py"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_is_written_or_read_as_a_pickle(path: Path) -> None:
    """Loading one runs whatever is in it. (Workers may send each other bytes: `dumps` and `loads` stay in memory.)"""
    calls = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    forbidden = {"torch.save", "torch.load", "pickle.dump", "pickle.load", "joblib.dump", "joblib.load"}
    if path == PACKAGE / "export" / "published" / "weights.py":  # heads that were published as .pt
        forbidden.remove("torch.load")
        assert _loads(path) == ["torch.load(file, map_location='cpu', weights_only=True)"]
    assert not calls & forbidden


def _loads(path: Path) -> list[str]:
    """Every call of torch.load, as written."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if ast.unparse(call.func) == "torch.load"]


def test_a_loss_takes_embeddings_and_never_a_model() -> None:
    assert not [name for name in _users("transformers", "embedtrain.encoder", "logging") if name.startswith("losses/")]


def test_every_test_that_the_table_of_traps_names_exists() -> None:
    tests = Path(__file__).parent
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (tests / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [test for file, test in named if f"def {test}(" not in (tests / file).read_text(encoding="utf-8")] == []
