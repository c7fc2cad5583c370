"""`embedtrain export`: the newest checkpoint of a run as a verified model folder."""

from __future__ import annotations

from pathlib import Path

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import refuse_rest, run_directory


def main(arguments: Arguments) -> int:
    run = run_directory(arguments)
    folder = arguments.take("folder", "")
    refuse_rest(arguments, "export takes run= and folder=")

    from embedtrain.training.export_run import export_run

    done = export_run(run, Path(folder) if folder else None)
    for note in done.notes:
        print(note)
    print(f"{done.path}: {done.verified_with} gives the same embeddings, cosine at least {done.worst_cosine:.6f}")
    return 0
