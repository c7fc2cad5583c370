"""Documents read as a whole and embedded chunk by chunk: spans, order, the relation, the step, the source."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from embedtrain.data.collate import collate, take
from embedtrain.data.late_chunking import encode_chunks
from embedtrain.data.prompts import Prompts
from embedtrain.data.sources import ChunkedDocuments
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.infonce import InfoNCE
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.training.step import ContrastiveStep
from embedtrain.types import RaggedTokens, TrainingExample
from tests.data.helpers import bpe, minilm
from tests.helpers.models import tiny_model_dir
from tests.test_encoder import encoder

DOCUMENTS = [["a red cat.", "it sleeps", "on a mat"], ["one"], ["naïve café über", "東京 🙂 and more"]]


def tokenizer(hf=None, *, length=48, **prompts):
    return TextTokenizer(
        tokenizer=copy.deepcopy(hf or minilm()),
        prompts=Prompts(**prompts),
        max_query_length=16,
        max_document_length=length,
    )


def chunks_of(tokens):
    """The ids inside each span."""
    return [tokens.ids[a:b].tolist() for a, b in tokens.spans.tolist()]


@pytest.mark.parametrize("prompt", ["", "text: "])
@pytest.mark.parametrize("hf", [minilm(), bpe(adds_eos=True)], ids=["wordpiece", "bpe"])
def test_a_span_holds_the_tokens_of_its_chunk_inside_the_whole(hf, prompt):
    one = tokenizer(hf, document=prompt)
    tokens = encode_chunks(one, DOCUMENTS)
    assert tokens.span_offsets.tolist() == [0, 3, 4, 6]
    separator = one.hf.sep_token or "\n\n"
    for number, document in enumerate(DOCUMENTS):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        assert ids == one.hf(prompt + separator.join(document))["input_ids"]
    for ids, chunk in zip(chunks_of(tokens), [c for d in DOCUMENTS for c in d], strict=True):
        assert one.hf.decode(ids).replace(" ", "") == one.hf.decode(
            one.hf(chunk, add_special_tokens=False)["input_ids"]
        ).replace(" ", "")


def test_chunks_may_come_in_another_order_than_they_stand():
    one = tokenizer()
    straight = encode_chunks(one, [DOCUMENTS[0]])
    turned = encode_chunks(one, [[DOCUMENTS[0][2], DOCUMENTS[0][0], DOCUMENTS[0][1]]], order=[[2, 0, 1]])
    assert torch.equal(turned.ids, straight.ids)
    assert torch.equal(turned.spans, straight.spans[[2, 0, 1]])


def test_spans_follow_their_texts_through_selection_and_joining():
    one = tokenizer()
    whole = encode_chunks(one, DOCUMENTS)
    plain, _ = one.encode(["a query", "another one"], role="query")
    both = RaggedTokens.cat([plain, whole])
    assert both.span_offsets.tolist() == [0, 1, 2, 5, 6, 8]
    picked = both.select(torch.tensor([4, 0, 2]))
    assert picked.span_offsets.tolist() == [0, 2, 3, 6]
    expected = chunks_of(both)
    assert chunks_of(picked) == [*expected[6:8], expected[0], *expected[2:5]]


def test_a_chunk_beyond_the_maximum_is_refused():
    with pytest.raises(DataError, match="a chunk of a document lies beyond 10 tokens"):
        encode_chunks(tokenizer(length=10), DOCUMENTS)


def test_a_vector_is_the_mean_over_its_chunk_with_the_document_in_sight(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path)).eval()
    made = model.encode_chunks(DOCUMENTS, chunk_tokens=1)
    assert made.offsets.tolist() == [0, 3, 4, 6]
    tokens = encode_chunks(model.tokenizer, DOCUMENTS)
    states = model.backbone(tokens)
    expected = torch.stack([states[a:b].mean(0) for a, b in tokens.spans.tolist()])
    torch.testing.assert_close(made.values, torch.nn.functional.normalize(expected).detach())
    alone = model.encode_chunks([["it sleeps"]]).values
    assert (alone @ made.values[1:2].T).item() < 0.999  # the rest of the document was seen
    model.pooling = MaxPooling()
    expected = torch.stack([states[a:b].amax(0) for a, b in tokens.spans.tolist()])
    torch.testing.assert_close(model.encode_chunks(DOCUMENTS).values, torch.nn.functional.normalize(expected).detach())
    assert len(model.encode_chunks([])) == 0
    model.pooling = ClsPooling()
    with pytest.raises(ConfigError, match=r"ClsPooling cannot embed the chunks .* Use mean or max"):
        model.encode_chunks(DOCUMENTS)


EXAMPLES = [
    TrainingExample(
        query="where is the cat", positives=("it sleeps",), negatives=("a red cat.", "on a mat"), order=(1, 0, 2)
    ),
    TrainingExample(query="plain", positives=("a plain text",), negatives=("another text",)),
    TrainingExample(query="tokyo", positives=("東京 🙂 and more",), negatives=("naïve café über",), order=(1, 0)),
]


def test_the_relation_counts_chunks_and_the_tokens_count_documents():
    batch = collate(EXAMPLES, tokenizer())
    assert batch.relation.owner.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert batch.relation.is_positive.tolist() == [True, False, False, True, False, True, False]
    assert len(batch.documents) == 4
    assert batch.documents.span_offsets.tolist() == [0, 3, 4, 5, 7]
    hf = minilm()
    found = [hf.decode(ids, skip_special_tokens=True) for ids in chunks_of(batch.documents)]
    assert found[:5] == ["it sleeps", "a red cat.", "on a mat", "a plain text", "another text"]


def test_fewer_hard_negatives_are_a_shorter_document():
    fewer = take(EXAMPLES[0], [0], [1])
    assert (fewer.negatives, fewer.order) == (("on a mat",), (1, 2))
    (text,) = (minilm().decode(collate([fewer], tokenizer()).documents.ids, skip_special_tokens=True),)
    assert text == "it sleeps on a mat"


@pytest.mark.parametrize("cached_share", [0.0, 1.0])
@pytest.mark.parametrize("chunk_tokens", [1, 1000])
def test_a_step_has_the_gradient_of_the_batch_by_hand(chunk_tokens, cached_share, tmp_path):
    folder = tiny_model_dir("bert", tmp_path)
    loss = InfoNCE(temperature=0.1)
    by_hand = encoder(folder).eval()
    vectors = []
    for example in EXAMPLES:
        chunks = [*example.positives, *example.negatives]
        if example.order is None:
            tokens, _ = by_hand.tokenizer.encode(chunks, role="document")
            vectors.append(by_hand(tokens).values)
        else:
            placed = [chunk for _, chunk in sorted(zip(example.order, chunks, strict=True))]
            vectors.append(by_hand(encode_chunks(by_hand.tokenizer, [placed])).values[list(example.order)])
    tokens, _ = by_hand.tokenizer.encode([example.query for example in EXAMPLES], role="query")
    logits = by_hand(tokens).values @ torch.cat(vectors).T / 0.1
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 5]))
    expected.backward()

    model = encoder(folder).eval()
    step = ContrastiveStep(encoder=model, loss=loss, chunk_tokens=chunk_tokens, cached_share=cached_share)
    result = step([collate(EXAMPLES, model.tokenizer)], 0)
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def source(tmp_path, *rows):
    path = tmp_path / "chunks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ChunkedDocuments(path=str(path))


def test_the_source_makes_the_other_chunks_hard_negatives(tmp_path):
    row = {"query": "q", "chunks": ["a", "b", "c", "b"], "answer": 1}
    example = source(tmp_path, row)[0]
    assert (example.positives, example.negatives, example.order) == (("b",), ("a", "c"), (1, 0, 2))


def test_the_order_is_part_of_the_data(tmp_path):
    prints = [
        source(tmp_path, {"query": "q", "chunks": chunks, "answer": answer}).index.fingerprint
        for chunks, answer in ((["a", "b"], 1), (["b", "a"], 0))
    ]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    "change", [{"answer": 2}, {"answer": -1}, {"chunks": "a"}, {"chunks": ["a", 1]}, {"query": None}]
)
def test_a_row_that_is_none_is_refused_with_its_line(change, tmp_path):
    good = {"query": "q", "chunks": ["a", "b"], "answer": 1}
    with pytest.raises(DataError, match=r"chunks.jsonl, line 2: expected a query, chunks"):
        source(tmp_path, good, good | change)[1]
