import pytest

from embedtrain.errors import DataError
from embedtrain.evaluation.result import EvaluationResult, QueryExample, read_results, write_results

RESULT = EvaluationResult(
    name="held_out",
    metrics={"ndcg@10": 0.5, "mrr@10": 0.25},
    primary="ndcg@10",
    per_query={"ndcg@10": {"q1": 1.0, "q2": 0.0}},
    examples={"q1": QueryExample(query="wo?", relevant="dört", found="dort", rank=None)},
    details={"num_queries": 2, "query_prompt": "query: "},
)


def test_results_come_back_from_json_as_they_were(tmp_path):
    path = tmp_path / "evaluation" / "before.json"
    write_results(path, {"held_out": RESULT})
    assert read_results(path) == {"held_out": RESULT}
    assert [p.name for p in path.parent.iterdir()] == ["before.json"]


def test_score_is_the_primary_metric():
    assert RESULT.score == 0.5


@pytest.mark.parametrize("text", ["", "[1]", '{"a": {"name": 3}}', '{"a": 3}'])
def test_file_with_anything_else_is_named(tmp_path, text):
    path = tmp_path / "before.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"before.json: expected evaluation results"):
        read_results(path)
