"""Documents that are negatives of many queries.

High-dimensional neighbours are spread unevenly: some documents, the hubs, are near to very many queries (Radovanovic et al.,
JMLR 11, 2010). Boilerplate and empty pages are among them. As negatives they teach again and again about one text.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import poisson

from embedtrain.mining.audit.records import Hub, Hubs
from embedtrain.mining.audit.table import Table
from embedtrain.mining.audit.words import beginning
from embedtrain.mining.records import MiningData

SHOWN = 10
TOP_SHARE = 0.01  # of the searched documents
CHARACTERS = 130  # of a document that is shown


def hubs_of(data: MiningData, table: Table) -> Hubs:
    used = np.bincount(table.document, minlength=len(data.documents))
    top = math.ceil(TOP_SHARE * data.num_searched)
    most = np.argsort(-used, kind="stable")[:SHOWN]
    return Hubs(
        documents_used=int((used > 0).sum()),
        top=[_hub(data.documents[document], int(used[document])) for document in most.tolist() if used[document]],
        top_documents=top,
        top_negatives=int(np.sort(used)[used.size - top :].sum()),
        expected_negatives=expected_in_top(table.query.size, data.num_searched, top),
    )


def _hub(text: str, negatives: int) -> Hub:
    start = beginning(text, CHARACTERS)
    return Hub(text=start, whole=start == text, negatives=negatives)


def expected_in_top(negatives: int, documents: int, top: int) -> float:
    """How many of `negatives`, each of a document drawn at random, the `top` most drawn documents hold.

    A document is drawn by about Poisson(negatives / documents) queries; of that distribution over all documents, the upper end.
    """
    if not negatives or not top:
        return 0.0
    mean = negatives / documents
    times = np.arange(int(poisson.isf(1e-12, mean)) + 1, 0, -1)
    drawn_so_often = documents * poisson.pmf(times, mean)
    taken = np.clip(top - (np.cumsum(drawn_so_often) - drawn_so_often), 0, drawn_so_often)
    return float(min(negatives, (taken * times).sum()))
