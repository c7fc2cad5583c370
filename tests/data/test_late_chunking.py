"""Documents read as a whole and embedded chunk by chunk: spans, order, the relation, the step, the source."""

from __future__ import annotations

import copy
import json
from itertools import chain

import pytest
import torch

from embedtrain import distributed
from embedtrain.data.collate import collate, take
from embedtrain.data.late_chunking import encode_chunks
from embedtrain.data.prompts import Prompts
from embedtrain.data.sources import ChunkedDocuments
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.infonce import InfoNCE
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.training.step import ContrastiveStep
from embedtrain.types import RaggedTokens, TrainingExample
from tests.data.helpers import bpe, minilm
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
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


@pytest.mark.parametrize("prompt", ["", "text: ", "text: {text} ended!"])
@pytest.mark.parametrize("hf", [minilm(), bpe(adds_eos=True)], ids=["wordpiece", "bpe"])
def test_a_span_holds_the_tokens_of_its_chunk_inside_the_whole(hf, prompt):
    one = tokenizer(hf, document=prompt, length=64)
    tokens = encode_chunks(one, DOCUMENTS)
    assert tokens.span_offsets.tolist() == [0, 3, 4, 6]
    separator = one.hf.sep_token or "\n\n"
    for number, document in enumerate(DOCUMENTS):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        before, _, behind = prompt.partition("{text}")
        assert ids == one.hf(before + separator.join(document) + behind)["input_ids"]
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
    assert encode_chunks(tokenizer(length=16), DOCUMENTS).lengths.tolist() == [13, 3, 11]
    with pytest.raises(
        DataError, match="a chunk of a document lies beyond"
    ):  # what stands behind texts has its room first
        encode_chunks(tokenizer(length=16, document="{text} that is all there is"), DOCUMENTS)
    with pytest.raises(DataError, match="a chunk of a document lies beyond 10 tokens"):
        encode_chunks(tokenizer(length=10), DOCUMENTS)


def test_a_vector_is_the_mean_over_its_chunk_with_the_document_in_sight(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path)).eval()
    made = model.encode_chunks(DOCUMENTS, chunk_tokens=1)
    assert (len(made), made.offsets) == (6, None)  # a text for each chunk
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
    with pytest.raises(ConfigError, match=r"ClsPooling cannot embed the chunks .* Use mean, max or multi_vector"):
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


MARKS = minilm().convert_tokens_to_ids([",", "-", ".", "/"])


def token_vectors(folder, kernel="auto", **options):
    """An encoder with one vector for each token: in documents none of commas, hyphens, full stops and slashes."""
    torch.manual_seed(0)
    head = MultiVectorPooling(hidden_size=32, dim=8, punctuation_ids=MARKS, **options)
    return encoder(folder, pooling=head, backbone={"kernel": kernel}).eval()


def by_loop(model, tokens, *, span):
    """Unit vectors of the tokens in a span of a text that is read by itself, one after the other, in float64."""
    states = model.backbone(tokens).double()
    kept = []
    for place in range(*span):
        skipped = model.pooling.skip_punctuation and not tokens.is_query[0] and int(tokens.ids[place]) in MARKS
        if not skipped and not (model.pooling.skip_first and place == 0):
            vector = model.pooling.linear.weight.double() @ states[place]
            kept.append(vector / vector.norm())
    return kept


def chunks_by_loop(model, example):
    """Token vectors of each document of an example: of one that is in chunks, out of one forward pass of the whole."""
    texts = [*example.positives, *example.negatives]
    if example.order is None:
        alone = [model.tokenizer.encode([text], role="document")[0] for text in texts]
        return [by_loop(model, tokens, span=tokens.spans[0].tolist()) for tokens in alone]
    placed = [text for _, text in sorted(zip(example.order, texts, strict=True))]
    whole = encode_chunks(model.tokenizer, [placed])
    return [by_loop(model, whole, span=whole.spans[place].tolist()) for place in example.order]


def max_sim(query, document):
    if not document:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([token @ other for other in document]).max() for token in query]).sum()


PUNCTUATED = [
    *EXAMPLES,
    # A chunk of nothing but punctuation has no vector, and a similarity of 0 to every query.
    TrainingExample(query="a mark", positives=("marks. here",), negatives=("...", "none / there"), order=(2, 0, 1)),
]


def colbert_loss():
    return InfoNCE(temperature=2.0)


@pytest.mark.parametrize("options", [{}, {"skip_first": True, "skip_punctuation": False}], ids=["", "other tokens"])
@pytest.mark.parametrize("prompt", ["", "text: "], ids=["", "prompt"])
def test_a_chunk_has_a_vector_for_each_of_its_tokens(prompt, options, tmp_path):
    model = token_vectors(tiny_model_dir("bert", tmp_path), **options)
    model.tokenizer.prompts = Prompts(document=prompt)
    documents = [*DOCUMENTS, ["...", "a / b"]]
    made = model.encode_chunks(documents, chunk_tokens=1)
    assert len(made) == 8
    expected = []
    for document in documents:
        tokens = encode_chunks(model.tokenizer, [document])
        expected += [by_loop(model, tokens, span=span) for span in tokens.spans.tolist()]
    assert made.offsets.diff().tolist() == [len(chunk) for chunk in expected]
    torch.testing.assert_close(made.values.double(), torch.stack(list(chain(*expected))), rtol=1e-4, atol=1e-6)
    assert model.encode_chunks([]).offsets.tolist() == [0]


def loop_of_colbert(model, examples):
    """InfoNCE over MaxSim: every query against all documents of the batch."""
    documents = [chunk for example in examples for chunk in chunks_by_loop(model, example)]
    first, total = 0, 0.0
    for example in examples:
        tokens, _ = model.tokenizer.encode([example.query], role="query")
        query = by_loop(model, tokens, span=tokens.spans[0].tolist())
        row = torch.stack([max_sim(query, document) for document in documents]) / 2.0
        total = total + torch.logsumexp(row, 0) - row[first]
        first += len(example.positives) + len(example.negatives)
    return total / len(examples)


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_step_over_token_vectors_of_chunks_is_the_loop(architecture, kernel, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    by_hand = token_vectors(folder, kernel)
    expected = loop_of_colbert(by_hand, PUNCTUATED)
    expected.backward()
    for chunk_tokens, cached_share in ((1, 0.0), (40, 0.5), (1000, 1.0)):
        model = token_vectors(folder, kernel)
        step = ContrastiveStep(encoder=model, loss=colbert_loss(), chunk_tokens=chunk_tokens, cached_share=cached_share)
        result = step([collate(PUNCTUATED, model.tokenizer)], 0)
        assert result.loss == pytest.approx(expected.item(), rel=1e-5)
        for (name, ours), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def step_of_a_rank(folder, shares, cached_share):
    """The gradients of a step of which this rank has its share of the examples."""
    model = token_vectors(folder)
    own = [PUNCTUATED[number] for number in shares[distributed.rank()]]
    step = ContrastiveStep(encoder=model, loss=colbert_loss(), chunk_tokens=30, cached_share=cached_share)
    result = step([collate(own, model.tokenizer)], 0)
    return result.loss, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("cached_share", [0.0, 1.0])
def test_two_ranks_meet_the_token_vectors_of_each_other_s_chunks(cached_share, tmp_path):
    folder = tiny_model_dir("bert", tmp_path)
    by_hand = token_vectors(folder)
    expected = loop_of_colbert(by_hand, PUNCTUATED)
    expected.backward()
    for loss, gradients in run_ranks(step_of_a_rank, 2, folder, [[0], [1, 2, 3]], cached_share):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(gradients, by_hand.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.grad, rtol=1e-3, atol=1e-5)


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
