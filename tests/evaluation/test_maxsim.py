"""MaxSim in tiles equals MaxSim by hand; the evaluators know which encoders want it."""

from __future__ import annotations

import pytest
import torch

from embedtrain.errors import ConfigError, TrainingError
from embedtrain.evaluation import maxsim, retrieval
from embedtrain.evaluation.encoding import encode
from embedtrain.evaluation.maxsim import maxsim_blocks
from embedtrain.evaluation.retrieval import RetrievalEvaluator
from embedtrain.evaluation.search import top_k
from embedtrain.evaluation.similarity import SimilarityEvaluator
from embedtrain.types import Embeddings
from tests.evaluation.stand_ins import WordEncoder
from tests.evaluation.test_retrieval import folder  # noqa: F401  (a fixture)
from tests.helpers.ranks import run_ranks


def texts(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(counts), 4, generator=generator)
    return Embeddings(values, offsets=torch.tensor([0, *counts]).cumsum(0))


def slow_maxsim(queries, documents):
    rows = []
    for query in queries.values.split(queries.offsets.diff().tolist()):
        row = []
        for document in documents.values.split(documents.offsets.diff().tolist()):
            best = [max((float(q @ d) for d in document), default=float("-inf")) for q in query]
            row.append(sum(best))
        rows.append(row)
    return torch.tensor(rows)


QUERIES, DOCUMENTS = texts([3, 1, 4, 2, 5], 0), texts([2, 7, 1, 0, 3, 3, 9], 1)


@pytest.mark.parametrize("products", [1, 20, 200, 10**6])
@pytest.mark.parametrize("vectors", [1, 6, 100])
def test_every_tiling_gives_what_a_slow_loop_gives(products, vectors, monkeypatch):
    monkeypatch.setattr(maxsim, "_PRODUCTS", products)
    monkeypatch.setattr(maxsim, "_QUERY_VECTORS", vectors)
    blocks = list(maxsim_blocks(QUERIES, DOCUMENTS, 2))
    assert max(len(block) for block in blocks) <= 2
    torch.testing.assert_close(torch.cat(blocks), slow_maxsim(QUERIES, DOCUMENTS), rtol=1e-5, atol=1e-5)


def test_a_document_without_vectors_is_found_last():
    _, indices = top_k(QUERIES, [DOCUMENTS], 7)
    assert (indices[:, -1] == 3).all()


def test_chunks_of_documents_change_nothing():
    expected = top_k(QUERIES, [DOCUMENTS], 4)
    parts = [DOCUMENTS.select(torch.arange(len(DOCUMENTS))[rows]) for rows in (slice(0, 1), slice(1, 5), slice(5, 7))]
    for one, other in zip(top_k(QUERIES, parts, 4), expected, strict=True):
        torch.testing.assert_close(one, other)


class TokenEncoder(WordEncoder):
    """A vector for each word, which leans towards its text: no two texts are equally similar to a third."""

    multi_vector = True

    def encode(self, texts, **options):
        raise AssertionError("an encoder of several vectors is not asked for one")

    def encode_embeddings(self, texts, *, role, source, instructions, show_progress):
        rows = [torch.stack([self._word(word) + 0.3 * self._word(text) for word in text.split()]) for text in texts]
        values = torch.nn.functional.normalize(torch.cat(rows), dim=1)
        return Embeddings(values, offsets=torch.tensor([0, *(len(row) for row in rows)]).cumsum(0))


def slow_ranking(data):
    def one(text):
        return TokenEncoder().encode_embeddings(
            [text], role="query", source=None, instructions=None, show_progress=False
        )

    ranking = {}
    for query, text in data.queries.items():
        scores = {key: round(float(slow_maxsim(one(text), one(other))), 4) for key, other in data.documents.items()}
        ranking[query] = sorted(sorted(scores, reverse=True), key=lambda key: -scores[key])
    return ranking


@pytest.mark.parametrize("numbers", [1, 2**28])
def test_retrieval_by_maxsim_is_that_of_a_slow_loop(folder, numbers, monkeypatch):  # noqa: F811
    monkeypatch.setattr(retrieval, "CHUNK_NUMBERS", numbers)
    evaluator = RetrievalEvaluator(path=folder, metrics=["ndcg@10", "mrr@10"])
    result = evaluator(TokenEncoder())
    expected = retrieval.measure_ranking(
        evaluator.data, {q: found[:10] for q, found in slow_ranking(evaluator.data).items()}, evaluator.measures, {}
    )
    assert result.metrics == pytest.approx(expected.metrics)


def on_ranks(path):
    return RetrievalEvaluator(path=path, chunk_documents=3)(TokenEncoder())


def test_every_number_of_ranks_finds_the_same(folder):  # noqa: F811
    alone = RetrievalEvaluator(path=folder)(TokenEncoder())
    results = run_ranks(on_ranks, 3, folder)
    assert [result.metrics for result in results] == [alone.metrics] * 3


class Wide(WordEncoder):
    numbers_per_document = 2**26


def test_documents_of_many_numbers_come_few_at_a_time(folder):  # noqa: F811
    encoder = Wide()
    assert RetrievalEvaluator(path=folder)(encoder).metrics == RetrievalEvaluator(path=folder)(WordEncoder()).metrics
    assert max(len(call["texts"]) for call in encoder.calls if call["role"] == "document") == 4


def test_a_vector_that_is_not_finite_is_blamed_on_its_text():
    class Broken(TokenEncoder):
        def _word(self, word):
            return super()._word(word) * (float("nan") if word == "bad" else 1.0)

    with pytest.raises(TrainingError, match=r"1 of 3 texts .* 'a bad cat'"):
        encode(Broken(), ["two cats", "a bad cat", "one"], role="query")


def test_similarity_wants_one_vector_and_says_so(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("sentence1\tsentence2\tscore\na cat\ta dog\t1\na bird\tthe sky\t2\n")
    with pytest.raises(ConfigError, match="similarity compares one vector per text"):
        SimilarityEvaluator(path=path)(TokenEncoder())
