from embedtrain.evaluation.comparison import comparison_table
from embedtrain.evaluation.result import EvaluationResult


def result(name, values, **details):
    per_query = {"ndcg@10": {f"q{i}": v for i, v in enumerate(values)}}
    metrics = {"ndcg@10": sum(values) / len(values), "extra": 0.5}
    return {name: EvaluationResult(name=name, metrics=metrics, primary="ndcg@10", per_query=per_query, details=details)}


def test_table_is_aligned_and_says_what_changed():
    sizes = {"num_queries": 4, "num_documents": 5183}
    table = comparison_table(result("mine", [0, 0, 0.5, 1], **sizes), result("mine", [1, 0.5, 0.5, 0.9], **sizes))
    title, header, first, second = table.splitlines()
    assert title == "mine (4 queries, 5,183 documents)"
    assert header.split() == ["before", "after", "change", "95", "%", "interval", "better", "worse"]
    assert first.split()[:5] == ["ndcg@10", "*", "37.50", "72.50", "+35.00"]
    assert first.split()[-2:] == ["50%", "25%"]
    assert second.split() == ["extra", "50.00", "50.00", "0.00", "-", "-", "-"]
    assert len({line.rindex(end) + len(end) for line, end in [(header, "worse"), (first, "25%"), (second, "-")]}) == 1


def test_evaluators_without_a_before_are_left_out():
    assert comparison_table({}, result("new", [1.0])) == ""
