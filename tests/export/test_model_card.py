"""The card states the record's facts and nothing else."""

import yaml

from embedtrain.export import MetricRecord, RunRecord, SourceRecord, model_card
from embedtrain.export.model_card import Loading

FULL = RunRecord(
    name="code-search",
    base_model="all-MiniLM-L6-v2",
    license="apache-2.0",
    language=("en",),
    pooling="mean",
    normalize=True,
    embedding_dim=384,
    max_query_length=64,
    max_document_length=256,
    num_parameters=22_713_216,
    similarity="cosine",
    prompts={"query": "Instruct: find code\nQuery: ", "document": ""},
    sources=(SourceRecord(name="stdlib", rows=12_345, weight=0.75), SourceRecord(name="extra", rows=10, weight=0.25)),
    loss="InfoNCE over cosine similarity, temperature 0.05",
    negatives="1 positive, 0 hard negatives, 63 in-batch negatives per query",
    hyper_parameters={"learning_rate": 2e-5, "global_batch_size": 64},
    seconds=123.4,
    command="accelerate launch train.py recipe=quickstart",
    environment={"torch": "2.13"},
    metrics=(MetricRecord(evaluator="stdlib", metric="nDCG@10", before=0.5, after=0.625, interval=(0.1, 0.15)),),
    limits=("Only Python was tested.",),
)


def front_matter(card):
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_front_matter_is_what_the_hub_reads():
    matter = front_matter(model_card(FULL))
    assert matter["library_name"] == "sentence-transformers"
    assert matter["pipeline_tag"] == "sentence-similarity"
    assert matter["base_model"] == "all-MiniLM-L6-v2"
    assert matter["license"] == "apache-2.0"
    assert matter["language"] == ["en"]
    assert "datasets" not in matter
    assert "custom_code" not in matter["tags"]


def test_every_fact_is_in_the_card():
    card = model_card(FULL, notes=["Cut at 256 tokens."])
    for fact in (
        "22,713,216", "384", "12,345", "0.7500", "InfoNCE", "63 in-batch", "2e-05", "recipe=quickstart", "2.13", "123 s",
        "| stdlib | nDCG@10 | 0.5000 | 0.6250 | +0.1250 | [+0.1000, +0.1500] |", "Only Python was tested.",
        "Cut at 256 tokens.", "encode_query", r"`Instruct: find code\nQuery: `",
    ):  # fmt: skip
        assert fact in card, fact


def test_what_is_missing_is_left_out():
    card = model_card(RunRecord())
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "None" not in card
    for heading in ("## Evaluation", "## Training", "## Training data", "## Repeat it", "## Notes"):
        assert heading not in card
    assert "The quality of this model was not measured by its run." in card


def test_remote_code_is_asked_for_where_it_is_needed():
    card = model_card(FULL, loading=Loading(trust_remote_code=True))
    assert 'SentenceTransformer("code-search", trust_remote_code=True)' in card
    assert "custom_code" in front_matter(card)["tags"]


def test_a_pipe_in_a_fact_does_not_break_the_table():
    card = model_card(RunRecord(prompts={"query": "<|user|>\n"}))
    assert r"`<\|user\|>\n`" in card
