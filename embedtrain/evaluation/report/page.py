"""report.html: what a run did, on one page that needs nothing but a browser.

In reading order: did it get better, by how much and how sure is that; how training went; which queries changed; what the
run was made of; how to repeat it; what the figures do not say. What is not known is said to be unknown.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from embedtrain.evaluation.report.document import document
from embedtrain.evaluation.report.facts import limits, made_of, repeat
from embedtrain.evaluation.report.files import RunFiles, read_run
from embedtrain.evaluation.report.queries import changed_queries
from embedtrain.evaluation.report.training import curves, key_facts
from embedtrain.evaluation.report.verdict import measured_changes, tables, verdicts


def write_report(path: str | Path, run_dir: str | Path) -> None:
    """Write the page at `path` from the files of a run directory, whatever of them is there.

    Raises DataError when there is no such folder or a file in it is broken.
    """
    Path(path).write_text(render(read_run(run_dir)), encoding="utf-8")


def render(run: RunFiles) -> str:
    """The page as one string."""
    changes = measured_changes(run)
    sections = [
        _header(run),
        verdicts(run, changes),
        key_facts(run),
        tables(run, changes),
        curves(run),
        *(changed_queries(name, run.before[name], run.after[name]) for name in changes),
        made_of(run),
        repeat(run),
        limits(run, changes),
    ]
    return document(f"{run.name}: training report", sections)


def _header(run: RunFiles) -> str:
    of = f"{escape(run.backbone)}, " if run.backbone else ""
    started = run.environment.get("started")
    return (
        f"<header><h1>{escape(run.name)}</h1>"
        f'<p class="over">Training report. {of}{f"started {escape(str(started))}" if started else "start unknown"}</p></header>'
    )
