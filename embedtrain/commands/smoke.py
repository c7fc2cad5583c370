"""`embedtrain smoke`: all stages of a recipe in a minute, small."""

from __future__ import annotations

from pathlib import Path

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import announce, join_ranks, log
from embedtrain.errors import ConfigError


def main(arguments: Arguments) -> int:
    folder = arguments.take("output", "")
    named = next((text.partition("=")[2] for text in arguments.overrides if text.startswith("recipe=")), "")
    if not named:
        raise ConfigError("recipe: required, and not set. Expected recipe=<name>; `embedtrain recipes` lists them.")

    from embedtrain.config.compose import compose_config

    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir)
    place = Path(folder or f"runs/smoke/{Path(named).stem}")
    if (place / "run").exists():
        raise ConfigError(
            f"output={place}: a smoke run is there already. Remove it, or choose another output=<folder>."
        )

    from embedtrain.config.validate import validate
    from embedtrain.run import Run
    from embedtrain.smoke import shrink
    from embedtrain.training.job import run_training

    small = shrink(composed.config, place)
    warnings = validate(small, composed.problems)
    join_ranks()
    run = Run.start(small, composed.overrides, composed.choices)
    announce(run, warnings)
    code = run_training(run.config, run)
    if code == 0:
        run.finish()
        log.info("%s fits together: every stage trained, and the model was exported and read again.", Path(named).stem)
    return code
