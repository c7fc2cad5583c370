"""The report of a run.

files.py   the run directory, read        verdict.py   before and after
plots.py   inline SVG                     training.py  curves and key figures
words.py   values as words                queries.py   what changed for whom
page.py    puts the sections together     facts.py     settings, environment, how to repeat
document.py  the frame of any page        report.css   its look
"""

from embedtrain.evaluation.report.page import write_report

__all__ = ["write_report"]
