"""`embedtrain merge`: several models as one."""

from __future__ import annotations

import os
from pathlib import Path

from embedtrain.commands.arguments import Arguments
from embedtrain.errors import ConfigError


def main(arguments: Arguments) -> int:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.merging import take_request
    from embedtrain.config.validate import validate_merging

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("merge runs as one process: start it without a launcher.")
    output = Path(arguments.required("output", "the folder to write"))
    request = take_request(arguments.overrides)
    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir, from_run=arguments.from_run)
    validate_merging(composed.config, request.kind.reads, composed.problems)

    from embedtrain import log as console
    from embedtrain.merging.command import run_merge

    console.start(main=True)
    for line in run_merge(request, composed.config, output=output):
        print(line, flush=True)
    return 0
