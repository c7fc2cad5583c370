"""Classification data as pairs."""

import gzip
import json
import logging
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Sampler
from embedtrain.data.sources import LabeledTexts
from embedtrain.data.sources.classes import Classes
from embedtrain.errors import ConfigError, DataError
from tests.data.helpers import SHARED, write_jsonl

ROWS = [{"text": f"text {label}{n}", "label": label} for label in "abc" for n in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def class_of(text: str) -> str:
    return text.split()[1][0]


def test_examples_pair_texts_of_one_class_with_texts_of_others(path):
    source = LabeledTexts(path=path, num_offered=3)
    assert len(source) == 15
    for row in source:
        assert [class_of(text) for text in row.positives] == [row.label] * 3
        assert row.query not in row.positives
        assert all(class_of(text) != row.label for text in row.negatives)
        assert (len(set(row.positives)), len(set(row.negatives))) == (3, 3)


def test_labels_pair_a_text_with_its_class(path):
    said = {"a": "about apples", "b": "about bears", "c": "about cars"}
    plain, described = (LabeledTexts(path=path, form="label", num_offered=None, descriptions=d) for d in (None, said))
    for row, other in zip(plain, described, strict=True):
        assert row.positives == (row.label,)
        assert sorted((*row.positives, *row.negatives)) == ["a", "b", "c"]
        assert (other.positives, other.negatives) == ((said[row.label],), tuple(said[name] for name in row.negatives))


def test_what_a_row_offers_is_a_function_of_seed_and_row(path):
    source = LabeledTexts(path=path, num_offered=2)
    alone = [source[row] for row in reversed(range(15))]
    assert alone == list(source)[::-1] == list(pickle.loads(pickle.dumps(source)))[::-1]
    assert LabeledTexts(path=path, num_offered=2, seed=1).fingerprint != source.fingerprint


def test_visits_take_what_a_row_offers_by_turns(path):
    source = LabeledTexts(path=path, num_offered=4)
    sampler = Sampler(Mixture(sources={"s": source}), seed=0, global_batch_size=15, num_positives=1, num_negatives=1)
    taken: dict[int, list[int]] = {}
    for epoch in range(4):
        rows = sampler.epoch(epoch)[0]
        for row, ((positive,), _) in zip(rows.row.tolist(), sampler.draws(rows), strict=True):
            taken.setdefault(row, []).append(positive)
    assert all(sorted(seen) == [0, 1, 2, 3] for seen in taken.values())


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), min_size=2, max_size=40),
    count=st.integers(1, 12),
    seed=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_draws_are_what_a_loop_over_all_rows_allows(rows, count, seed):
    labels, texts = [label for label, _ in rows], [text for _, text in rows]
    classes = Classes.of(labels, texts)
    members = set(rows)
    alone = {text for _, text in rows if sum(t == text for _, t in members) == 1}
    for row, (label, text) in enumerate(rows):
        allowed = {t for other, t in members if other == label and t != text}
        drawn = [texts[r] for r in classes.others_of(row, count, seed)]
        assert len(drawn) == len(set(drawn)) == min(count, len(allowed))
        assert set(drawn) <= allowed
        allowed = {t for other, t in members if other != label and t in alone}
        drawn = [texts[r] for r in classes.outside_of(row, count, seed)]
        assert len(drawn) == len(set(drawn)) == min(count, len(allowed))
        assert set(drawn) <= allowed
        others = classes.other_names(row, None, seed)
        assert sorted(others) == sorted(set(labels) - {label})


def test_draws_are_even():
    classes = Classes.of(["a"] * 50 + ["b"] * 50, list(range(100)))
    drawn = [int(r) for row in range(50) for r in classes.others_of(row, 10, 0)]
    assert min(map(drawn.count, range(50))) >= 2
    assert max(map(drawn.count, range(50))) <= 22


def test_a_class_with_one_text_is_left_out_and_counted(tmp_path, caplog):
    rows = [*ROWS, {"text": "lonely", "label": "d"}, {"text": "lonely", "label": "d"}]
    source = LabeledTexts(path=write_jsonl(tmp_path / "f.jsonl", rows))
    with caplog.at_level(logging.WARNING, "embedtrain"):
        assert len(source) == 15
    assert (
        "1 of 4 classes have one text each, without another one to pair it with (d): 2 rows are left out" in caplog.text
    )
    assert "lonely" in {text for row in source for text in row.negatives}
    assert len(LabeledTexts(path=str(tmp_path / "f.jsonl"), form="label")) == 17


def test_a_text_of_several_classes_is_no_negative_and_is_counted(tmp_path, caplog):
    rows = [*ROWS, {"text": "text a0", "label": "b"}]
    source = LabeledTexts(path=write_jsonl(tmp_path / "f.jsonl", rows), num_offered=20)
    with caplog.at_level(logging.WARNING, "embedtrain"):
        assert all("text a0" not in row.negatives for row in source)
    assert "1 texts have several classes" in caplog.text


def test_labels_may_be_numbers_and_columns_have_any_name(tmp_path):
    (tmp_path / "f.csv").write_text("sentence,intent\n" + "".join(f"s{n},{n % 3}\n" for n in range(9)), "utf-8")
    rows = [{"sentence": f"s{n}", "intent": float(n % 3)} for n in range(9)]
    names = {"text": "sentence", "label": "intent"}
    both = [LabeledTexts(path=p, **names) for p in (str(tmp_path / "f.csv"), write_jsonl(tmp_path / "f.jsonl", rows))]
    assert [row.label for row in both[0]] == [str(n % 3) for n in range(9)]
    assert both[0].fingerprint == both[1].fingerprint


def test_held_out_texts_are_neither_positives_nor_negatives_of_the_others(tmp_path):
    rows = [{"text": f"text {label}{n}", "label": label} for label in "abc" for n in range(20)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    train, dev = (LabeledTexts(path=path, held_out={"share": 0.3, "part": part}) for part in ("train", "dev"))
    assert len(train) + len(dev) == 60
    texts = [{text for row in side for text in (row.query, *row.positives, *row.negatives)} for side in (train, dev)]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "label": "a"}] * 3, r"every row has the class 'a'\. At least 2"),
        ([*ROWS, {"text": "x", "label": None}], r"f\.jsonl:16: label is missing or empty"),
        ([*ROWS, {"text": "x", "label": True}], r"f\.jsonl:16: label is bool 'True'\. Expected the class"),
        ([{"text": "x", "class": "a"}], r"f\.jsonl:1: label is missing or empty\. .* label=<column>"),
        ([*ROWS, {"text": " ", "label": "a"}], r"f\.jsonl:16: query is empty"),
    ],
)
def test_rows_without_a_class_are_named(rows, message, tmp_path):
    source = LabeledTexts(path=write_jsonl(tmp_path / "f.jsonl", rows))
    with pytest.raises(DataError, match=message):
        _ = source.index


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"form": "both"}, "form='both': expected example or label"),
        ({"descriptions": {"a": "x"}}, "read in form: label only"),
        ({"num_offered": None}, "expected at least 1"),
        ({"form": "label", "num_offered": 0}, "expected at least 1, or null for all"),
        ({"form": "label", "descriptions": {"a": "x", "b": "y", "z": "w"}}, r"Without a text: c; not a class: z"),
        ({"form": "label", "descriptions": {"a": "x", "b": "x", "c": "y"}}, "two classes have the same text"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message, path):
    with pytest.raises(ConfigError, match=message):
        len(LabeledTexts(path=path, **given))


BANKING = SHARED / "cls-banking77" / "train.jsonl.gz"


@pytest.mark.skipif(not BANKING.exists(), reason="Banking77 is not on this machine")
def test_banking77_makes_batches_of_whole_classes():
    source = LabeledTexts(path=str(BANKING), batch_size=64, texts_per_label=4, num_negatives=0)
    sampler = Sampler(Mixture(sources={"banking": source}), seed=0, global_batch_size=8)
    plan = sampler.epoch(0)
    assert sorted(plan.rows.row.tolist()) == list(range(10003))
    labels = sampler.mixture.indexes[0].label_ids
    whole = [
        sorted({rows.count(label) for label in rows}) == [4]
        for rows in (labels[plan[s].row].tolist() for s in range(len(plan)))
    ]
    assert sum(whole) >= 0.97 * len(plan)
    with gzip.open(BANKING, "rt", encoding="utf-8") as file:
        label_of = {row["text"]: row["label"] for row in map(json.loads, file)}
    for number in range(0, 10003, 500):
        assert {label_of[text] for text in source[number].positives} == {source[number].label}
