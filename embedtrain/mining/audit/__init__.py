"""What a person should know of mined negatives before training on them.

    MiningData, Mined  --audit-->  Audit  --write_audit-->  report.json, report.html
                                          --summary_lines-->  a few lines for the terminal

records.py     the figures: an Audit is plain JSON
table.py       the negatives of the kept queries as flat columns, from which all is computed
figures.py     scores, positives below negatives, short rows, ranks, siblings
hubs.py        documents that are negatives of many queries, against what chance would give
estimates.py   how many negatives may be answers, by each basis on its own
examples.py    rows to read: half at random, half the most suspicious
warnings.py    what is out of the ordinary, from which figure on, and what to do
audit.py       puts them together
report.py      files, and words for the terminal; page/ makes the page
"""

from embedtrain.mining.audit.audit import audit
from embedtrain.mining.audit.records import Audit
from embedtrain.mining.audit.report import summary_lines, write_audit

__all__ = ["Audit", "audit", "summary_lines", "write_audit"]
