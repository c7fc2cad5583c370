"""Every figure of an audit against a loop over queries, rows and texts."""

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.mining.audit import audit
from embedtrain.mining.audit.figures import MARGIN_BINS, SCORE_BINS, _edges
from embedtrain.mining.audit.hubs import expected_in_top
from embedtrain.mining.records import NO_DOCUMENT, REASONS
from embedtrain.types import NO_LABEL
from tests.mining.audit.mined import nothing, odd, plain

seeds = st.integers(0, 2**32)


class Slow:
    """Kept queries as lists: (document, score, rank, reason) of negatives and (document, score) of positives."""

    def __init__(self, data, mined):
        self.data = data
        self.kept = [query for query in range(len(data.queries)) if mined.kept_queries[query]]
        self.negatives, self.positives = {}, {}
        for query in self.kept:
            columns = (mined.documents[query], mined.scores[query], mined.ranks[query], mined.reasons[query])
            cells = zip(*(column.tolist() for column in columns), strict=True)
            self.negatives[query] = [cell for cell in cells if cell[0] != NO_DOCUMENT]
            first, last = data.positive_offsets[query : query + 2].tolist()
            scores = mined.positive_scores[first:last].tolist()
            self.positives[query] = list(zip(data.positives[first:last].tolist(), scores, strict=True))

    def pairs(self):
        return [(query, *cell) for query in self.kept for cell in self.negatives[query]]

    def positive_scores(self, query):
        return [score for _, score in self.positives[query] if not math.isnan(score)]

    def negative_scores(self, query):
        return [cell[1] for cell in self.negatives[query] if not math.isnan(cell[1])]


def counted(values, edges):
    """Bin i holds edges[i] <= value < edges[i + 1]."""
    return [sum(low <= value < high for value in values) for low, high in pairwise(edges)]


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def triples(text):
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False)) if len(found) >= 3 else set(found)


def quantiles(values):
    return [pytest.approx(np.quantile(values, at), abs=1e-9) for at in (0.05, 0.5, 0.95)] if values else None


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_rows_queries_and_siblings_are_counted_one_by_one(seed):
    data, mined = odd(seed)
    slow, counts = Slow(data, mined), audit(data, mined, scored_by="m").counts
    rows = Counter(data.query_of_row.tolist())
    assert counts.rows == len(data.query_of_row)
    assert counts.rows_kept == sum(rows[query] for query in slow.kept)
    assert (counts.queries, counts.queries_kept) == (len(data.queries), len(slow.kept))
    assert (counts.documents, counts.documents_read) == (data.num_searched, data.documents_read)
    assert counts.positives == sum(len(slow.positives[query]) for query in slow.kept)
    assert counts.documents_that_answer == len(set(data.positives.tolist()))
    assert counts.positives_missing == len(data.documents) - data.num_searched
    assert counts.negatives == len(slow.pairs())
    assert counts.num_negatives == mined.documents.shape[1]
    assert counts.queries_of_several_rows == sum(rows[query] > 1 for query in slow.kept)
    assert counts.most_rows_of_a_query == max((rows[query] for query in slow.kept), default=0)
    assert counts.queries_of_several_positives == sum(len(slow.positives[query]) > 1 for query in slow.kept)
    assert counts.most_positives_of_a_query == max((len(slow.positives[query]) for query in slow.kept), default=0)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_histograms_hold_every_score_of_a_kept_query_in_its_bin(seed):
    data, mined = odd(seed)
    slow, scores = Slow(data, mined), audit(data, mined, scored_by="m").scores
    positives = [score for query in slow.kept for score in slow.positive_scores(query)]
    negatives = [score for query in slow.kept for score in slow.negative_scores(query)]
    if not positives + negatives:
        assert scores is None
        return
    assert scores.positives == counted(positives, scores.edges)
    assert scores.negatives == counted(negatives, scores.edges)
    assert scores.positive_quantiles == quantiles(positives)
    assert scores.negative_quantiles == quantiles(negatives)
    assert scores.positives_without == sum(len(slow.positives[query]) for query in slow.kept) - len(positives)
    assert scores.negatives_without == len(slow.pairs()) - len(negatives)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_positives_below_negatives_are_those_of_the_same_query(seed):
    data, mined = odd(seed)
    slow, order = Slow(data, mined), audit(data, mined, scored_by="m").order
    compared = [query for query in slow.kept if slow.positive_scores(query) and slow.negative_scores(query)]
    margins = [max(slow.positive_scores(query)) - max(slow.negative_scores(query)) for query in compared]
    assert order.queries == len(compared)
    assert order.some_positive_below == sum(
        max(slow.negative_scores(query)) > min(slow.positive_scores(query)) for query in compared
    )
    assert order.every_positive_below == sum(margin < 0 for margin in margins)
    assert order.margins == counted(margins, order.edges)
    assert order.margin_quantiles == quantiles(margins)
    below = sum(count for high, count in zip(order.edges[1:], order.margins, strict=False) if high <= 0)
    assert below == order.every_positive_below  # what the page paints red


@settings(max_examples=60, deadline=None)
@given(seeds, st.booleans())
def test_suspected_answers_are_found_by_each_basis_alone(seed, rescored):
    data, mined = odd(seed)
    slow, report = Slow(data, mined), audit(data, mined, scored_by="m", rescored=rescored)
    expected = {}

    def suspect(name, query, judged, suspected):
        expected.setdefault(name, []).append((query, judged, judged and suspected))

    for query, document, score, _, _ in slow.pairs():
        known = slow.positive_scores(query)
        judged = bool(known) and not math.isnan(score)
        suspect("above_lowest", query, judged, judged and score > min(known))
        suspect("above_mean", query, judged, judged and score > math.fsum(known) / len(known))
        answers = [
            words(data.documents[positive])
            for other in slow.kept
            if words(data.queries[other]) == words(data.queries[query])
            for positive, _ in slow.positives[other]
        ]
        suspect("same_words", query, True, words(data.documents[document]) in answers)
        own = triples(data.documents[document])
        near = [triples(data.documents[positive]) for positive, _ in slow.positives[query]]
        suspect("near_duplicates", query, True, any(len(own & one) >= 0.5 * len(own | one) for one in near))
        classes = int(data.query_labels[query]), int(data.document_labels[document])
        suspect("own_class", query, NO_LABEL not in classes, classes[0] == classes[1])

    for estimate in report.estimates:
        rows = expected.pop(estimate.name, [])
        assert estimate.negatives == sum(suspected for _, _, suspected in rows), estimate.name
        assert estimate.of == sum(judged for _, judged, _ in rows)
        assert estimate.queries == len({query for query, _, suspected in rows if suspected})
        assert estimate.share == (estimate.negatives / estimate.of if estimate.of else None)
        assert report.share_of(estimate.name) == estimate.share
    for name, rows in expected.items():  # no basis: nothing that it could judge, or it says what another says
        assert name == "above_lowest" or not any(judged for _, judged, _ in rows)
        assert report.share_of(name) is None


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_lengths_ranks_reasons_and_hubs_are_counted_one_by_one(seed):
    data, mined = odd(seed)
    slow, report = Slow(data, mined), audit(data, mined, scored_by="m")
    lengths = Counter(len(slow.negatives[query]) for query in slow.kept)
    assert report.lengths == [lengths[length] for length in range(mined.documents.shape[1] + 1)]
    assert report.reasons == Counter(REASONS[cell[4]] for cell in slow.pairs())

    ranks = sorted(cell[3] for cell in slow.pairs() if cell[3])
    found = report.ranks
    assert found.without == len(slow.pairs()) - len(ranks)
    assert found.negatives == [
        sum(first <= rank <= last for rank in ranks) for first, last in zip(found.first, found.last, strict=True)
    ]
    assert sum(found.negatives) == len(ranks)
    assert found.median == (ranks[(len(ranks) - 1) // 2] if ranks else None)
    assert not ranks or found.last[-1] == ranks[-1]

    used, hubs = Counter(cell[1] for cell in slow.pairs()), report.hubs
    assert hubs.documents_used == len(used)
    assert hubs.top_documents == math.ceil(data.num_searched / 100)
    assert hubs.top_negatives == sum(count for _, count in used.most_common(hubs.top_documents))
    most = sorted(used, key=lambda document: (-used[document], document))[:10]
    assert [(hub.text, hub.negatives) for hub in hubs.top] == [(data.documents[d], used[d]) for d in most]
    assert all(hub.whole for hub in hubs.top)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    st.sampled_from([SCORE_BINS, MARGIN_BINS]),
    st.sampled_from([1.0, 1e-3, 1e-20, 1e20]),
)
def test_bins_are_round_of_one_width_and_hold_all_values(values, bins, unit):
    values = np.array(values) * unit
    edges = np.array(_edges(values, bins))
    assert edges[0] <= values.min()
    assert values.max() < edges[-1]
    assert np.histogram(values, edges)[0].sum() == values.size
    widths = np.diff(edges)
    assert (widths > 0).all()
    np.testing.assert_allclose(widths, widths[0], rtol=1e-5)
    assert widths.size <= bins + 2
    if widths.size > 1:
        assert widths.size >= bins / 2.5
        np.testing.assert_allclose(edges / widths[0], np.round(edges / widths[0]), atol=1e-4)
        assert not edges[0] < 0 < edges[-1] or 0.0 in edges


def test_edges_read_as_a_person_would_write_them():
    edges = _edges(np.array([-0.1, 0.7]), 40)
    assert edges[:3] == [-0.1, -0.08, -0.06]
    assert edges[-2:] == [0.7, 0.72]


@pytest.mark.parametrize(("negatives", "documents"), [(800, 1000), (5000, 700), (200, 20000)])
def test_hubs_by_chance_are_those_of_a_simulation(negatives, documents):
    random = np.random.default_rng(0)
    top = math.ceil(documents / 100)
    held = []
    for _ in range(200):
        used = np.bincount(random.integers(documents, size=negatives), minlength=documents)
        held.append(np.sort(used)[-top:].sum())
    assert expected_in_top(negatives, documents, top) == pytest.approx(np.mean(held), rel=0.03)


def test_chance_gives_no_more_than_there_is():
    assert expected_in_top(0, 100, 1) == 0.0
    assert expected_in_top(5, 1, 1) == pytest.approx(5)
    assert expected_in_top(1, 10_000, 100) == pytest.approx(1.0, rel=1e-3)


def test_nothing_mined_is_no_error():
    data, _ = plain([[5], [6]])
    report = audit(data, nothing(2, 3, positives=2), scored_by="m")
    assert report.scores is None
    assert report.order.queries == 0
    assert report.order.edges == []
    assert report.lengths == [2, 0, 0, 0]
    assert report.ranks.median is None
    assert report.ranks.first == []
    assert report.examples == []
    assert report.hubs.top == []
    assert [estimate.share for estimate in report.estimates] == [None, None]


def test_all_queries_dropped_is_no_error():
    data, mined = plain([[5], [6]])
    mined.kept_queries[:] = False
    report = audit(data, mined, scored_by="m")
    assert (report.counts.queries_kept, report.counts.negatives, report.counts.rows_kept) == (0, 0, 0)
    assert report.scores is None


def test_one_query_has_an_audit():
    report = audit(*plain([[3, 4]], scores=[[0.9, 0.1]]), scored_by="m")
    assert report.order.every_positive_below == 1
    assert report.scores is not None
    assert sum(report.scores.negatives) == 2
    assert [(one.name, one.negatives, one.of) for one in report.estimates[:1]] == [("above_mean", 1, 2)]


def test_with_one_positive_each_the_lowest_is_not_told_beside_the_mean():
    names = [one.name for one in audit(*plain([[3], [4]]), scored_by="m").estimates]
    assert names == ["above_mean", "same_words", "near_duplicates"]


def test_infinite_scores_count_as_none():
    data, mined = plain([[3, 4]], scores=[[math.inf, 0.1]])
    mined.positive_scores[:] = -math.inf
    report = audit(data, mined, scored_by="m")
    assert report.scores.negatives_without == 1
    assert report.scores.positives_without == 1
    assert report.order.queries == 0
