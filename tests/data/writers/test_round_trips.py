"""What is written is read again, whatever is in the texts; what has no place in a format is counted."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedtrain.data.sources import BeirFolder, JsonLines, LabeledList, PairsFile, Parquet, Tevatron
from embedtrain.data.writers import WRITERS, MinedRow
from embedtrain.errors import DataError
from tests.data.helpers import SHARED
from tests.data.writers.helpers import row, rows, write

MANY = st.lists(rows(), min_size=1, max_size=5)
LIMIT = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def finite(row):
    """The scores of a row where every document has one."""
    scores = row.example.scores
    return None if scores is None or any(map(math.isnan, scores)) else scores


def read(source):
    return [(e.query, e.positives, e.negatives, e.scores, e.instruction) for e in source]


def counted(rows, **has):
    """name -> rows of which it is true, where there are any."""
    return {name: sum(map(test, rows)) for name, test in has.items() if sum(map(test, rows))}


def has_scores(row):
    return finite(row) is not None or any(s is not None and not math.isnan(s) for s in row.negative_scores)


@LIMIT
@given(MANY)
def test_canonical_rows_keep_everything(tmp_path, many):
    written = write("canonical", tmp_path, many)
    assert written.files == (tmp_path / "rows.jsonl",)
    assert (written.rows, written.lost) == (len(many), {})
    for source in (JsonLines(path=str(tmp_path / "rows.jsonl")), PairsFile(path=str(tmp_path / "rows.jsonl"))):
        examples = [r.example for r in many]
        assert read(source) == [
            (e.query, e.positives, e.negatives, finite(r), e.instruction) for e, r in zip(examples, many, strict=True)
        ]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().split(b"\n") if line]
    for line, r in zip(lines, many, strict=True):
        assert line["mined"] == {
            "scores": [None if s is None or math.isnan(s) else s for s in r.negative_scores],
            "ranks": list(r.ranks),
            "reasons": list(r.reasons),
            "by": r.scored_by,
        }


def test_canonical_rows_keep_the_class(tmp_path):
    write("canonical", tmp_path, [row(label="3"), row(label="a b")])
    columns = {
        "query": "query",
        "positives": "positives",
        "negatives": "negatives",
        "scores": "scores",
        "label": "label",
    }
    source = JsonLines(path=str(tmp_path / "rows.jsonl"), columns=columns)
    assert [e.label for e in source] == ["3", "a b"]
    assert [e.scores for e in source] == [(0.9, 0.8)] * 2


@LIMIT
@given(MANY)
def test_flag_embedding_rows(tmp_path, many):
    written = write("flag_embedding", tmp_path, many)
    kept = [r for r in many if r.example.negatives]
    assert written.rows == len(kept)
    assert written.lost == {
        **counted(many, rows_without_negatives=lambda r: not r.example.negatives),
        **counted(kept, scores=lambda r: has_scores(r) and finite(r) is None, ranks_and_reasons=lambda r: True),
    }
    if not kept:
        assert not (tmp_path / "rows.jsonl").read_bytes()
        return
    assert read(PairsFile(path=str(tmp_path / "rows.jsonl"))) == [
        (r.example.query, r.example.positives, r.example.negatives, finite(r), r.example.instruction) for r in kept
    ]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().split(b"\n") if line]
    # In every row or in none: where some lack it, its loader reads the word None.
    assert len({"prompt" in line for line in lines}) == 1
    assert [line.get("prompt", "") for line in lines] == [r.example.instruction or "" for r in kept]


@LIMIT
@given(MANY)
def test_triplets(tmp_path, many):
    written = write("triplet", tmp_path, many)
    kept = [r for r in many if r.example.negatives]
    keeps_scores = bool(kept) and all(finite(r) is not None for r in kept)
    expected = []
    for r in kept:
        for p, positive in enumerate(r.example.positives):
            for n, negative in enumerate(r.example.negatives):
                scores = (r.example.scores[p], r.example.scores[len(r.example.positives) + n]) if keeps_scores else None
                expected.append((r.example.query, (positive,), (negative,), scores, None))
    assert read(PairsFile(path=str(tmp_path / "rows.parquet"))) == expected
    assert written.rows == len(expected)
    assert written.lost == {
        **counted(many, rows_without_negatives=lambda r: not r.example.negatives),
        **counted(
            kept,
            instructions=lambda r: r.example.instruction is not None,
            ranks_and_reasons=lambda r: True,
            scores=lambda r: has_scores(r) and not keeps_scores,
        ),
    }


@LIMIT
@given(MANY, st.none() | st.integers(0, 3))
def test_n_tuples(tmp_path, many, asked):
    written = WRITERS["n_tuple"](tmp_path, "rows", many, num_negatives=asked)
    width = max(len(r.example.negatives) for r in many) if asked is None else asked
    kept = [r for r in many if len(r.example.negatives) >= width]
    keeps_scores = bool(kept) and all(finite(r) is not None for r in kept)
    expected = []
    for r in kept:
        of_negatives = (r.example.scores or ())[len(r.example.positives) :][:width]
        for p, positive in enumerate(r.example.positives):
            scores = (r.example.scores[p], *of_negatives) if keeps_scores else None
            expected.append((r.example.query, (positive,), r.example.negatives[:width], scores, None))
    source = Parquet(path=str(tmp_path / "rows.parquet"))
    assert read(source) == expected
    assert written.rows == len(expected)
    assert written.lost.get(f"rows_with_fewer_than_{width}_negatives", 0) == len(many) - len(kept)
    assert written.lost.get("scores", 0) == (0 if keeps_scores else sum(map(has_scores, kept)))


@LIMIT
@given(MANY)
def test_labeled_lists(tmp_path, many):
    written = write("labeled_list", tmp_path, many)
    path = str(tmp_path / "rows.parquet")
    examples = [r.example for r in many]
    expected = [
        (e.query, e.positives, e.negatives, (1.0,) * len(e.positives) + (0.0,) * len(e.negatives), None)
        for e in examples
    ]
    assert read(LabeledList(path=path)) == read(PairsFile(path=path)) == expected
    assert written.lost == counted(
        many,
        instructions=lambda r: r.example.instruction is not None,
        scores=has_scores,
        ranks_and_reasons=lambda r: bool(r.example.negatives),
    )


@LIMIT
@given(MANY)
def test_tevatron_rows(tmp_path, many):
    written = write("tevatron", tmp_path, many)
    kept = [r for r in many if r.example.negatives]
    assert written.lost.get("rows_without_negatives", 0) == len(many) - len(kept)
    if not kept:
        return
    expected = [(r.example.query, r.example.positives, r.example.negatives, None, None) for r in kept]
    for source in (Tevatron(path=str(tmp_path / "rows")), PairsFile(path=str(tmp_path / "rows"))):
        assert read(source) == expected
    assert read(PairsFile(path=str(tmp_path / "rows" / "train.jsonl"))) == expected
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "rows" / "corpus.jsonl").read_bytes().split(b"\n") if line
    ]
    assert Counter(texts) == Counter({text for r in kept for text in (*r.example.positives, *r.example.negatives)})


@LIMIT
@given(MANY)
def test_beir_folders(tmp_path, many):
    written = write("beir", tmp_path, many)
    positives: dict[str, list[str]] = {}
    for r in many:
        known = positives.setdefault(r.example.query, [])
        known += [text for text in dict.fromkeys(r.example.positives) if text not in known]
    expected = [(query, tuple(t.strip() for t in texts), (), None, None) for query, texts in positives.items()]
    for source in (BeirFolder(path=str(tmp_path / "rows")), PairsFile(path=str(tmp_path / "rows"))):
        assert read(source) == expected
    texts = {text for r in many for text in (*r.example.positives, *r.example.negatives)}
    assert written.lost.get("texts_with_outer_blanks", 0) == sum(text != text.strip() for text in texts)
    assert written.lost.get("rows_of_one_query", 0) == len(many) - len(positives)
    by_id = {}
    for line in (tmp_path / "rows" / "corpus.jsonl").read_bytes().split(b"\n"):
        if line:
            by_id[json.loads(line)["_id"]] = json.loads(line)["text"]
    lines = [json.loads(line) for line in (tmp_path / "rows" / "negatives.jsonl").read_bytes().split(b"\n") if line]
    assert [
        [(by_id[n["corpus-id"]], n["score"], n["rank"], n["reason"]) for n in line["negatives"]] for line in lines
    ] == [
        list(zip(r.example.negatives, r.known_scores, r.ranks, r.reasons, strict=True))
        for r in many
        if r.example.negatives
    ]


@pytest.mark.skipif(not (SHARED / "pairs-nq-toy").is_dir(), reason="needs shared/data")
@pytest.mark.parametrize("kind", ["canonical", "flag_embedding", "n_tuple", "labeled_list", "tevatron"])
def test_real_rows_go_from_format_to_format(tmp_path, kind):
    before = list(JsonLines(path=str(SHARED / "pairs-nq-toy" / "train.jsonl")))
    mined = [
        MinedRow(
            example=e,
            negative_scores=e.scores[len(e.positives) :],
            ranks=tuple(range(1, len(e.negatives) + 1)),
            reasons=("top",) * len(e.negatives),
            scored_by="a teacher",
        )
        for e in before
    ]
    written = write(kind, tmp_path, mined)
    path = written.files[-1] if kind != "tevatron" else written.files[-1].parent
    after = list(PairsFile(path=str(path)))
    if kind == "n_tuple":
        before = [e for e in before if len(e.negatives) == 100]
        assert written.lost["rows_with_fewer_than_100_negatives"] == 10 - len(before) == 1
    assert sum(len(e.positives) for e in after) == sum(len(e.positives) for e in before)
    negatives = {e.query: e.negatives for e in before}
    assert all(e.negatives == negatives[e.query] for e in after)
    if kind in ("canonical", "flag_embedding"):
        assert [(e.scores, e.instruction) for e in after] == [(e.scores, e.instruction) for e in before]


def test_half_a_character_is_refused_and_nothing_is_left(tmp_path):
    for kind in WRITERS:
        with pytest.raises(DataError, match=r"row 7: a text holds '\\ud800', half a character"):
            write(kind, tmp_path / kind, [row(), row(query="\ud800", row="row 7")])
        assert not [path for path in (tmp_path / kind).rglob("*") if path.is_file()]
    assert Path(tmp_path / "beir").is_dir()
