"""report.html of a mining.

render.py   puts the sections together       figures.py  of one source: scores, ranks, suspicions, hubs
verdict.py  what to look at first            reading.py  rows to read
plots.py    histograms and bars as SVG       facts.py    how they were mined, and what the page does not say
"""

from embedtrain.mining.audit.page.render import render

__all__ = ["render"]
