"""`embedtrain report`: write the report of a run again."""

from __future__ import annotations

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import refuse_rest, run_directory


def main(arguments: Arguments) -> int:
    run = run_directory(arguments)
    refuse_rest(arguments, "report takes run=")

    from embedtrain.evaluation.report import write_report

    write_report(run / "report.html", run)
    print(run / "report.html")
    return 0
