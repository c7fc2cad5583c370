"""`embedtrain train`: train, prove, export and report."""

from __future__ import annotations

import os

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import announce, compose, join_ranks, log


def main(arguments: Arguments) -> int:
    from embedtrain.run import Run, standing

    composed, warnings = compose(arguments)
    if os.environ.get("RANK", "0") == "0":
        standing(composed.config)  # refuses a directory of another run now, and not after half a minute of imports

    from embedtrain import distributed
    from embedtrain.training.job import run_training
    from embedtrain.training.trainer import Terminated

    join_ranks()
    run = Run.start(composed.config, composed.overrides, composed.choices)
    if run.finished:
        log.info(
            "%s is finished: there is nothing left to train. Its report: %s\nTo train again choose another run.name.",
            run.dir,
            run.dir / "report.html",
        )
        return 0
    announce(run, warnings)
    try:
        code = run_training(run.config, run)
    except Terminated as stop:
        log.info("%s", stop)
        return stop.exit_code
    if code == 0 and distributed.is_main():
        run.finish()
    distributed.shutdown()
    return code
