"""The words behind a command: `key=value` for the command or the config, and a few flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from embedtrain.errors import ConfigError

_REFUSED = {
    "-m": "a sweep inside a launch would run every trial in every rank, sharing one process group. Start one command per trial.",
    "--local_rank": "ranks come from the launcher's environment. Start with `accelerate launch train.py ...` or `torchrun`.",
    "--cfg": "`embedtrain check recipe=...` prints the config and where each part is from.",
    "--config-name": "a run is chosen with recipe=<name>; a recipe of your own: recipe=path/to/mine.yaml or --config-dir DIR.",
}
_REFUSED |= {
    "--multirun": _REFUSED["-m"],
    "--local-rank": _REFUSED["--local_rank"],
    "-c": _REFUSED["--cfg"],
    "--info": _REFUSED["--cfg"],
    "--resolve": _REFUSED["--cfg"],
    "-cn": _REFUSED["--config-name"],
    "--config-path": _REFUSED["--config-name"],
    "-cp": _REFUSED["--config-name"],
}


@dataclass
class Arguments:
    """A command line, taken apart."""

    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    from_run: str | None = None
    help: bool = False

    def take(self, key: str, default: str, choices: Sequence[str] | None = None) -> str:
        """The value of `key=value`, which belongs to the command and not to the config."""
        for text in list(self.overrides):
            name, _, value = text.partition("=")
            if name == key:
                self.overrides.remove(text)
                default = value
        if choices is not None and default not in choices:
            raise ConfigError(f"{key}={default}: expected one of {', '.join(choices)}.")
        return default

    def required(self, key: str, what: str) -> str:
        """The value of a `key=value` that the command cannot do without."""
        value = self.take(key, "")
        if not value:
            raise ConfigError(f"{key}: required, and not set. Expected {key}=<{what}>.")
        return value


def parse(argv: Sequence[str]) -> Arguments:
    """Raises ConfigError for a flag that there is not."""
    found = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            found.help = True
        elif flag in ("--config-dir", "--from-run"):
            if not equals and not words:
                raise ConfigError(f"{flag}: expected a folder after it.")
            setattr(found, flag[2:].replace("-", "_"), value if equals else words.pop(0))
        elif flag in _REFUSED:
            raise ConfigError(f"{flag}: {_REFUSED[flag]}")
        elif word.startswith("-"):
            from embedtrain.config.explain import bad_syntax

            raise ConfigError(bad_syntax(word))
        else:
            found.overrides.append(word)
    return found
