from dataclasses import replace

import pytest

from embedtrain.data.collate import collate, take
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.types import NO_LABEL, TrainingExample, text_id
from tests.data.helpers import minilm

ROW = TrainingExample(
    query="q",
    positives=("p0", "p1", "p2"),
    negatives=("n0", "n1"),
    scores=(0.0, 1.0, 2.0, 3.0, 4.0),
    source="s",
    row="f:1",
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    prompts = Prompts(query="{instruction}", document="d: ", sources={"sym": {"query": "x: ", "document": "x: "}})
    return TextTokenizer(tokenizer=minilm(), prompts=prompts, max_query_length=8, max_document_length=8)


def test_taking_keeps_scores_with_their_documents():
    taken = take(ROW, [2], [1])
    assert (taken.positives, taken.negatives, taken.scores) == (("p2",), ("n1",), (2.0, 4.0))


def test_documents_are_query_major_positives_first(tokenizer):
    other = TrainingExample(query="r", positives=("p9",), negatives=("n8", "n9"), source="sym", row="f:2")
    examples = [TrainingExample(query="q", positives=("p0", "p1"), instruction="do: "), other]
    batch = collate(examples, tokenizer, share=0.25)
    relation = batch.relation
    assert relation.owner.tolist() == [0, 0, 1, 1, 1]
    assert relation.is_positive.tolist() == [True, True, True, False, False]
    assert relation.document_ids.tolist() == [text_id(t) for t in ("p0", "p1", "p9", "n8", "n9")]
    assert relation.query_ids.tolist() == [text_id("q"), text_id("r")]
    assert relation.known_ids.tolist() == [text_id(t) for t in ("p0", "p1", "p9")]
    assert relation.known_offsets.tolist() == [0, 2, 3]
    assert relation.scores is None
    assert (batch.share, batch.rows, batch.sources) == (0.25, ("", "f:2"), ("", "sym"))
    texts = [tokenizer.hf.decode(d, skip_special_tokens=True) for d in _lists(batch.documents)]
    assert texts == ["d : p0", "d : p1", "x : p9", "x : n8", "x : n9"]
    assert [tokenizer.hf.decode(q, skip_special_tokens=True) for q in _lists(batch.queries)] == ["do : q", "x : r"]


def test_rows_without_scores_or_label_say_so_beside_rows_that_have_them(tokenizer):
    scored = TrainingExample(query="q", positives=("p",), negatives=("n",), scores=(2.5, -1.0), source="sym")
    assert collate([scored, scored], tokenizer).relation.scores.tolist() == [2.5, -1.0, 2.5, -1.0]
    plain = TrainingExample(query="q", positives=("p",), source="sym")
    relation = collate([scored, plain], tokenizer).relation
    assert relation.scores[:2].tolist() == [2.5, -1.0]
    assert relation.scores[2:].isnan().tolist() == [True]
    assert collate([plain, plain], tokenizer).relation.scores is None
    labelled = replace(plain, label="card lost")
    assert collate([labelled, plain], tokenizer).relation.labels.tolist() == [text_id("card lost"), NO_LABEL]
    assert collate([plain, plain], tokenizer).relation.labels is None


def test_what_was_not_drawn_is_known_all_the_same(tokenizer):
    known = [[text_id(t) for t in ROW.positives]]
    example = TrainingExample(query="q", positives=("p1",), source="sym")
    batch = collate([example], tokenizer, known=known)
    assert batch.relation.num_documents == 1
    assert batch.relation.known_ids.tolist() == known[0]


def test_cut_texts_are_counted(tokenizer):
    long = TrainingExample(query="word " * 20, positives=("word " * 20, "w"), source="sym")
    assert collate([long], tokenizer).num_truncated == 2


def _lists(tokens):
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
