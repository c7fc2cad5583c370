"""report.json and report.html: the same numbers, strict JSON, and a page that stands alone whatever the texts say."""

import json
import math
import re
from dataclasses import asdict
from html import unescape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.errors import DataError
from embedtrain.evaluation.report.words import DASH
from embedtrain.mining.audit import audit, write_audit
from embedtrain.mining.audit.page import render
from embedtrain.mining.audit.words import beginning, number, percent, share, span
from tests.evaluation.test_report import Reader
from tests.mining.audit.mined import nothing, odd, plain

SCRIPT = "<script>alert('x')</script> & \"quotes\""


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def written(folder, audits, facts=None):
    as_json, as_html = write_audit(folder, audits, facts or {})
    return json.loads(as_json.read_text("utf-8"), parse_constant=refuse), as_html.read_text("utf-8")


def page_of(**audits):
    return render(audits, {})


def words_of(page):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.split("</style>")[1])).split())


def checked(page):
    """All tags close, and nothing is fetched or run."""
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert "<script" not in page
    assert "javascript:" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert all(target.startswith("#") for target in re.findall(r"(?:src|href)=\"([^\"]*)\"", page))
    assert "default-src 'none'" in page
    return page


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_json_holds_every_figure_and_is_strict(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("report")
    found = audit(*odd(seed), scored_by="m", facts={"seconds": math.nan, "search": {"recall": np.float32(0.5)}})
    tree, page = written(folder, {"things": found})
    source = tree["sources"]["things"]
    assert source["facts"] == {"seconds": None, "search": {"recall": 0.5}}
    assert [one.pop("share") for one in source["estimates"]] == [one.share for one in found.estimates]
    expected = asdict(found)
    expected["facts"] = source["facts"]
    assert source == expected
    checked(page)


def test_page_and_json_hold_the_same_numbers(tmp_path):
    data, mined = odd(12)
    mined.short_rows |= {"short rows": 3}
    mined.dropped |= {"positive": 12_345}
    tree, page = written(tmp_path, {"things": audit(data, mined, scored_by="tiny")})
    source, text = tree["sources"]["things"], words_of(page)
    counts, order = source["counts"], source["order"]
    assert f"per query, of {counts['num_negatives']} {counts['negatives'] / counts['queries_kept']:.1f}" in text
    assert f"queries {counts['queries_kept']} of {counts['queries']}" in text
    assert f"In {order['every_positive_below']} of {order['queries']} queries" in text
    for one in source["estimates"]:
        said = percent(one["share"]) if one["share"] is not None else DASH
        assert f"{one['what']} {one['basis']} {one['negatives']} {one['of']} {said} {one['queries']}" in text
    for hub in source["hubs"]["top"]:
        assert f"{hub['text']} {hub['negatives']} {share(hub['negatives'], counts['queries_kept'])}" in text
    for i, (positives, negatives) in enumerate(
        zip(source["scores"]["positives"], source["scores"]["negatives"], strict=True)
    ):
        low, high = source["scores"]["edges"][i : i + 2]
        assert (
            f"{number(low)} to {number(high)}: positives {share(positives, sum(source['scores']['positives']))} ({positives:,})"
            f", negatives {share(negatives, sum(source['scores']['negatives']))} ({negatives:,})"
        ) in text
    for i, count in enumerate(order["margins"]):
        assert f"{number(order['edges'][i])} to {number(order['edges'][i + 1])}: {count} queries" in text
    for length, count in enumerate(source["lengths"]):
        assert f"{length}: {count} queries, {share(count, counts['queries_kept'])}" in text
    for first, last, count in zip(*(source["ranks"][key] for key in ("first", "last", "negatives")), strict=True):
        assert f"{span(first, last)}: {count} negatives" in text
    assert "positive 12,345" in text
    assert "short rows 3" in text


def test_texts_cannot_break_out_of_the_page(tmp_path):
    name = f"a/{SCRIPT}"
    data, mined = plain(
        [[1]] * 20,
        queries=[f"{SCRIPT} {q}" for q in range(20)],
        documents=["answer", SCRIPT],
        positives=[[0]] * 20,
        instructions=[SCRIPT] * 20,
    )
    mined.dropped[SCRIPT] = 3
    mined.dropped_queries[SCRIPT] = 3
    found = audit(data, mined, scored_by=SCRIPT, facts={SCRIPT: {SCRIPT: SCRIPT}})
    _, page = written(tmp_path, {name: found, "other": found}, {"command": SCRIPT, "config": {"a": SCRIPT}})
    checked(page)
    assert words_of(page).count(SCRIPT) > 40


def test_two_sources_stand_side_by_side_and_have_a_section_each(tmp_path):
    good = audit(*plain([[9, 8]] * 3), scored_by="m")
    bad = audit(*plain([[9, 8]] * 3, scores=0.9), scored_by="m", rescored=True)
    tree, page = written(tmp_path, {"good & new": good, "bad": bad})
    assert tree["sources"].keys() == {"good & new", "bad"}
    checked(page)
    text = words_of(page)
    assert "Hard negatives of good & new, bad" in text
    assert "good & new 3 6 2.0 0% 0% 0% 50.0% 0" in text  # a row of the table of sources
    assert "bad 3 6 2.0 100% 100% 0% 50.0% 2" in text
    assert "Nothing stands out of good & new" in text
    for target in re.findall(r'href="#([^"]*)"', page):
        assert page.count(f'id="{target}"') == 1
    assert "Examples to read: good & new" in text
    assert "Examples to read: bad" in text
    assert "The scores of good & new are those of the search" in text


def test_one_source_has_no_table_of_sources():
    text = words_of(checked(page_of(a=audit(*plain([[9]]), scored_by="m"))))
    assert "Sources source" not in text
    assert "Nothing stands out." in text


@pytest.mark.parametrize("kept", [True, False])
def test_a_source_without_a_negative_has_a_page(tmp_path, kept):
    data, _ = plain([[9], [8]])
    empty = nothing(2, 3, positives=2)
    empty.kept_queries[:] = kept
    _, page = written(tmp_path, {"a": audit(data, empty, scored_by="m"), "b": audit(*plain([[9]]), scored_by="m")})
    assert "Neither positives nor negatives have scores." in words_of(checked(page))


def test_positives_alone_have_a_histogram():
    data, mined = plain([[9], [8]])
    mined.scores[:] = math.nan
    text = words_of(checked(page_of(a=audit(data, mined, scored_by="m"))))
    assert "Without a score: 2 negatives." in text
    assert f"positives 100% (2), negatives {DASH} (0)" in text


def test_no_source_has_a_page():
    assert "Hard negatives of 0 sources" in words_of(checked(render({}, {})))


def test_half_a_surrogate_pair_is_no_error(tmp_path):
    found = audit(*plain([[1]], documents=["answer", "half \ud83d pair"]), scored_by="m")
    tree, page = written(tmp_path, {"a": found})
    assert tree["sources"]["a"]["examples"][0]["negatives"][0]["text"] == "half ? pair"
    assert "half ? pair" in page


def test_a_folder_that_takes_no_files_is_a_data_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"report\.html could not be written"):
        write_audit(tmp_path / "taken", {}, {})


def test_what_was_typed_and_every_setting_are_on_the_page(tmp_path):
    found = audit(
        *plain([[9]]), scored_by="tiny", facts={"search": {"kind": "faiss ivf", "recall": None, "nprobe": 32}}
    )
    facts = {"command": "embedtrain mine data=pairs", "config": {"miner": {"depth": 1234}}}
    tree, page = written(tmp_path, {"a": found}, facts)
    text = words_of(page)
    assert tree["facts"] == facts
    assert "embedtrain mine data=pairs" in text
    assert "depth: 1234" in text
    assert "search, kind faiss ivf" in text
    assert "search, nprobe 32" in text
    assert "a: the recall of the search was not measured." in text


def test_a_share_of_none_by_a_filter_is_not_said_to_be_good_news():
    low, high = (page_of(a=audit(*plain([[9]], scores=score), scored_by="m")) for score in (0.1, 0.9))
    assert "no negative scores above a positive of its query" in words_of(low)
    assert "no negative scores above a positive of its query" not in words_of(high)


def test_same_texts_and_seed_give_the_same_files(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_audit(folder, {"things": audit(*odd(3), scored_by="m", seed=5)}, {})
    for name in ("report.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_medians_are_named_and_drawn():
    page = page_of(a=audit(*plain([[9, 8]], positive=0.5, scores=[[0.6, 0.4]]), scored_by="m"))
    assert "positives, median 0.500" in words_of(page)
    assert "negatives, median 0.500" in words_of(page)
    first, second = re.findall(r'class="median line\d" x1="([^"]*)" x2="([^"]*)"', page)
    assert first == second
    assert first[0] == first[1]


def test_queries_with_a_negative_on_top_are_red():
    # Margins of -0.01, 0 and 0.4 and more.
    found = audit(*plain([[9], [8], [7], [6]], positive=0.5, scores=[[0.51], [0.5], [0.1], [0.0]]), scored_by="m")
    page = page_of(a=found)
    red = [int(count) for count in re.findall(r'<rect class="worse"[^>]*><title>[^:]*: (\d+) queries', page)]
    assert sum(red) == found.order.every_positive_below == 1


def test_negatives_above_every_positive_are_marked():
    page = page_of(a=audit(*plain([[9, 8, 7]], positive=0.5, scores=[[0.75, 0.5, 0.25]]), scored_by="m"))
    rows = page.split('<table class="texts">')[1].split("</tr>")[:4]
    assert ["above every positive" in row for row in rows] == [False, True, False, False]
    assert [word in row for word, row in zip(("text 0", "text 9", "text 8", "text 7"), rows, strict=True)] == [True] * 4


def test_more_bars_than_fit_are_grouped():
    data, mined = plain([[9], [8, 7]], width=100)
    text = words_of(checked(page_of(a=audit(data, mined, scored_by="m"))))
    assert f"{span(0, 2)}: 2 queries, 100%" in text
    assert f"{span(99, 100)}: 0 queries, 0%" in text


def test_a_beginning_ends_behind_a_word():
    assert beginning("one two three", 13) == "one two three"
    assert beginning("one two three", 9) == "one two"
    assert beginning("one two three", 7) == "one two"
    assert beginning("x" * 20, 8) == "x" * 8
