import json
import math
import random
import time

import pytest

from embedtrain.distributed import rank
from embedtrain.errors import ConfigError, DataError, TrainingError
from embedtrain.evaluation.retrieval import PairsEvaluator, RetrievalEvaluator
from embedtrain.types import TrainingExample
from tests.evaluation.stand_ins import MiniLM, WordEncoder, shared_data
from tests.helpers.ranks import run_ranks

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "home", "field", "sky", "old", "new"]


@pytest.fixture
def folder(tmp_path):
    """23 queries over 60 documents with grades 0 to 3; every document stands there twice, so that scores are tied."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(30)] * 2
    queries = [" ".join(draw.choices(WORDS, k=2)) for _ in range(23)]
    write_folder(
        tmp_path,
        documents={f"d{i}": text for i, text in enumerate(texts)},
        queries={f"q{i}": text for i, text in enumerate(queries)},
        judgements=[(f"q{q}", f"d{d}", draw.randint(0, 3)) for q in range(23) for d in draw.sample(range(60), 4)]
        + [("q0", "d59", 1)],
    )
    return tmp_path


def write_folder(path, documents, queries, judgements):
    (path / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in [("corpus.jsonl", documents), ("queries.jsonl", queries)]:
        (path / name).write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in rows.items()))
    lines = {(q, d): f"{q}\t{d}\t{grade}\n" for q, d, grade in judgements}
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines.values()))


def slow_ranking(data, encoder):
    options = {"source": None, "instructions": None, "show_progress": False}
    vectors = {key: encoder.encode([text], role="document", **options)[0] for key, text in data.documents.items()}
    ranking = {}
    for query, text in data.queries.items():
        vector = encoder.encode([text], role="query", **options)[0]
        # rounded: sums of equal texts may differ in the last bit; among equals trec_eval takes the larger id
        score = {key: round(float(vector @ other), 5) for key, other in vectors.items()}
        ranking[query] = sorted(sorted(vectors, reverse=True), key=lambda key: -score[key])
    return ranking


def slow_metrics(data, ranking, k):
    """The formulas of the field, one query at a time."""
    values = {"ndcg": [], "mrr": [], "recall": [], "precision": [], "accuracy": []}
    for query, found in ranking.items():
        grades = data.judgements[query]
        gains = [max(0, grades.get(document, 0)) for document in found[:k]]
        ideal = sorted((g for g in grades.values() if g > 0), reverse=True)
        values["ndcg"].append(dcg(gains) / dcg(ideal[:k]))
        hits = [rank for rank, gain in enumerate(gains, start=1) if gain > 0]
        values["mrr"].append(1 / hits[0] if hits else 0)
        values["recall"].append(len(hits) / len(ideal))
        values["precision"].append(len(hits) / k)
        values["accuracy"].append(float(bool(hits)))
    return {f"{name}@{k}": sum(v) / len(v) for name, v in values.items()}


def dcg(gains):
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_figures_are_those_of_the_formulas(folder, k):
    metrics = [f"{name}@{k}" for name in ("ndcg", "mrr", "recall", "precision", "accuracy")]
    evaluator = RetrievalEvaluator(path=folder, metrics=metrics)
    result = evaluator(WordEncoder())
    expected = slow_metrics(evaluator.data, slow_ranking(evaluator.data, WordEncoder()), k)
    assert result.metrics == pytest.approx(expected)
    assert result.primary == f"ndcg@{k}"


def test_mean_over_queries_is_the_figure(folder):
    result = RetrievalEvaluator(path=folder)(WordEncoder())
    assert list(result.metrics) == ["ndcg@10", "mrr@10", "recall@10", "recall@100"]
    for name, values in result.per_query.items():
        assert len(values) == result.details["num_queries"]
        assert result.metrics[name] == pytest.approx(sum(values.values()) / len(values))


@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_chunk_size_changes_nothing(folder, chunk):
    result = RetrievalEvaluator(path=folder, chunk_documents=chunk)(WordEncoder())
    assert result.metrics == RetrievalEvaluator(path=folder)(WordEncoder()).metrics


def evaluate(path):
    if rank() == 1:
        time.sleep(0.5)  # ranks need not arrive together
    return RetrievalEvaluator(path=path, chunk_documents=7)(WordEncoder())


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_gets_the_result_of_one_process(folder, ranks):
    expected = evaluate(folder)
    results = run_ranks(evaluate, ranks, folder)
    assert all(result == results[0] for result in results)  # also seconds: it is one result, told to all
    assert results[0].metrics == expected.metrics
    assert results[0].per_query == expected.per_query
    assert results[0].examples == expected.examples


def texts_encoded(path):
    encoder = WordEncoder()
    RetrievalEvaluator(path=path)(encoder)
    return [text for call in encoder.calls for text in call["texts"]]


def test_work_is_divided_among_ranks(folder):
    alone = texts_encoded(folder)
    shares = run_ranks(texts_encoded, 2, folder)
    assert sorted(shares[0] + shares[1]) == sorted(alone)
    assert abs(len(shares[0]) - len(shares[1])) <= 2


def test_more_ranks_than_queries(tmp_path):
    write_folder(tmp_path, {"d1": "red", "d2": "blue"}, {"q1": "red"}, [("q1", "d1", 1)])
    assert [result.score for result in run_ranks(evaluate, 4, tmp_path)] == [1.0] * 4


def test_equal_texts_are_encoded_once(folder):
    assert len(texts_encoded(folder)) == 23 + 30


def test_roles_source_and_instruction_reach_the_encoder(folder):
    encoder = WordEncoder()
    RetrievalEvaluator(path=folder, source="nq", instruction="find it")(encoder)
    queries, documents = encoder.calls
    assert (queries["role"], documents["role"]) == ("query", "document")
    assert all(call["source"] == "nq" and set(call["instructions"]) == {"find it"} for call in encoder.calls)


def test_a_query_does_not_find_itself(tmp_path):
    documents = {"q1": "red cat", "d1": "red bird", "d2": "old sky"}
    write_folder(tmp_path, documents, {"q1": "red cat"}, [("q1", "d1", 1)])
    result = RetrievalEvaluator(path=tmp_path, metrics=["mrr@1"])(WordEncoder())
    assert result.score == 1.0
    assert result.examples["q1"].found == "red bird"


def test_same_id_by_accident_stays(tmp_path):
    write_folder(tmp_path, {"1": "red bird", "2": "old sky"}, {"1": "red cat"}, [("1", "2", 1)])
    assert RetrievalEvaluator(path=tmp_path)(WordEncoder()).examples["1"].found == "red bird"


def test_examples_show_what_was_found_and_what_should_have_been(tmp_path):
    long = "sky " * 200
    write_folder(
        tmp_path, {"d1": "red cat", "d2": long}, {"q1": "red cat", "q2": "sky"}, [("q1", "d2", 1), ("q2", "d2", 2)]
    )
    result = RetrievalEvaluator(path=tmp_path, metrics=["mrr@1"])(WordEncoder())
    wrong, right = result.examples["q1"], result.examples["q2"]
    assert (wrong.found, wrong.rank, right.rank) == ("red cat", None, 1)
    assert wrong.relevant == right.found
    assert len(right.found) <= 240
    assert right.found.endswith("sky…")


def test_broken_weights_are_an_error_not_a_score(folder):
    class Broken(WordEncoder):
        def encode(self, texts, **options):
            return super().encode(texts, **options) * float("inf")

    with pytest.raises(TrainingError, match="not finite"):
        RetrievalEvaluator(path=folder)(Broken())


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg", "ndcg@0", "ndcg@ten", "recall@-1"])
def test_unknown_metric_lists_those_there_are(folder, name):
    with pytest.raises(ConfigError, match=r"is no retrieval metric.*ndcg, mrr, recall"):
        RetrievalEvaluator(path=folder, metrics=[name])


def test_no_metric_is_refused(folder):
    with pytest.raises(ConfigError, match="expected at least one"):
        RetrievalEvaluator(path=folder, metrics=[])


PAIRS = [
    TrainingExample(query="red", positives=("a red cat",), negatives=("a blue cat",)),
    TrainingExample(query="blue", positives=("a blue cat", "blue sky")),
    TrainingExample(query="red", positives=("red bird",)),
    TrainingExample(query="old", positives=("old home",), negatives=("red", "old")),
]


def test_pairs_become_a_task_in_which_equal_texts_are_one():
    data = PairsEvaluator(pairs=PAIRS).data
    assert sorted(data.queries.values()) == ["blue", "old", "red"]
    assert len(data.documents) == 7
    answers = {data.queries[q]: {data.documents[d] for d in judged} for q, judged in data.judgements.items()}
    assert answers == {"red": {"a red cat", "red bird"}, "blue": {"a blue cat", "blue sky"}, "old": {"old home"}}
    own = {data.queries[q]: data.documents[d] for q, d in data.own_documents.items()}
    assert own == {"red": "red", "old": "old"}


def test_pairs_are_evaluated_like_a_folder(tmp_path):
    result = PairsEvaluator(pairs=PAIRS, name="mine", metrics=["recall@2"])(WordEncoder())
    assert result.name == "mine"
    assert result.details["num_queries"] == 3
    documents = dict(enumerate(["a red cat", "a blue cat", "blue sky", "red bird", "old home"]))
    answers = [("red", 0), ("red", 3), ("blue", 1), ("blue", 2), ("old", 4)]
    write_folder(tmp_path, documents, {q: q for q, _ in answers}, [(q, d, 1) for q, d in answers])
    assert result.score == RetrievalEvaluator(path=tmp_path, metrics=["recall@2"])(WordEncoder()).score


def test_rows_with_instructions_of_their_own_are_different_queries():
    pairs = [TrainingExample(query="red", positives=(text,), instruction=text) for text in ("cat", "bird")]
    encoder = WordEncoder()
    result = PairsEvaluator(pairs=pairs, instruction="for the rest")(encoder)
    assert result.details["num_queries"] == 2
    assert encoder.calls[0]["instructions"] == ["cat", "bird"]


def test_no_rows_are_an_error():
    with pytest.raises(DataError, match="no rows"):
        PairsEvaluator(pairs=[])


def test_prompts_are_kept_with_the_result(folder):
    from embedtrain.data.prompts import Prompts

    class Prompted(WordEncoder):
        @property
        def tokenizer(self):
            return type("Tokenizer", (), {"prompts": Prompts(query="ask: ", sources={"nq": {"document": "doc: "}})})

    details = RetrievalEvaluator(path=folder, source="nq")(Prompted()).details
    assert (details["query_prompt"], details["document_prompt"]) == ("ask: ", "doc: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("ir-limit-small", "test", {"ndcg@10": 31.36, "mrr@10": 32.77, "recall@10": 48.05, "recall@100": 100.0}),
        ("faq-stackfaq", "dev", {"ndcg@10": 74.93, "mrr@10": 87.66, "recall@10": 74.64, "recall@100": 97.21}),
    ],
)
def test_minilm_scores_what_it_is_known_to_score(name, split, expected):
    """Figures of an independent evaluation of the same weights."""
    result = RetrievalEvaluator(path=shared_data(name), split=split, chunk_documents=500)(MiniLM())
    assert {key: 100 * value for key, value in result.metrics.items()} == pytest.approx(expected, abs=0.01)
