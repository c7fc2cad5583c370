import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from embedtrain.distributed import rank
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.rescorers import cross_encoder as module
from embedtrain.mining.rescorers.cross_encoder import CrossEncoder
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.mining.rescorers.folders import reranker, some_data, some_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return reranker(tmp_path_factory.mktemp("reranker"))


@torch.no_grad()
def one_by_one(folder: str, queries: list[str], documents: list[str], max_length: int = 128) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    return [
        model(**tokenizer(q, d, truncation=True, max_length=max_length, return_tensors="pt")).logits.item()
        for q, d in zip(queries, documents, strict=True)
    ]


def texts(data, queries, documents):
    return [data.queries[q] for q in queries], [data.documents[d] for d in documents]


@pytest.mark.parametrize("batch_tokens", [1, 200, 16384])
@pytest.mark.parametrize("max_length", [24, 128])
def test_scores_are_the_logits_of_one_pair_at_a_time(folder, batch_tokens, max_length):
    data, (queries, documents) = some_data(), some_pairs()
    rescorer = CrossEncoder(model=folder, max_length=max_length, batch_tokens=batch_tokens, store=None)
    scores = rescorer.score(data, queries, documents)
    expected = one_by_one(folder, *texts(data, queries, documents), max_length)
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert min(expected) < 0 < max(expected)  # logits: no sigmoid has been near them
    distinct = sorted(set(zip(queries.tolist(), documents.tolist(), strict=True)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [len(tokenizer(data.queries[q], data.documents[d])["input_ids"]) for q, d in distinct]
    facts = rescorer.facts()
    assert (facts["pairs"], facts["scored"], facts["there"]) == (len(distinct), len(distinct), 0)
    assert facts["cut"] == sum(length > max_length for length in lengths)


@pytest.mark.parametrize("architecture", ["modernbert", "qwen3"])
def test_other_families_score_alike(tmp_path, architecture):
    """Without segments; and a decoder, which reads the last token before the padding."""
    path = reranker(tmp_path, architecture)
    data, (queries, documents) = some_data(), some_pairs()
    scores = CrossEncoder(model=path, max_length=128, store=None).score(data, queries[:12], documents[:12])
    assert scores.tolist() == pytest.approx(one_by_one(path, *texts(data, queries[:12], documents[:12])), abs=1e-5)


def test_each_pair_is_scored_once_and_batches_keep_to_the_budget(folder, monkeypatch):
    shapes = []
    real = module._logits

    def noted(model, tokenizer, encoded, batch):
        shapes.append((len(batch), max(len(encoded["input_ids"][i]) for i in batch)))
        return real(model, tokenizer, encoded, batch)

    monkeypatch.setattr(module, "_logits", noted)
    data, (queries, documents) = some_data(), some_pairs()
    CrossEncoder(model=folder, max_length=128, batch_tokens=300, store=None).score(data, queries, documents)
    assert sum(size for size, _ in shapes) == len(set(zip(queries.tolist(), documents.tolist(), strict=True)))
    assert all(size * longest <= 300 for size, longest in shapes)
    longest = [longest for _, longest in shapes]
    assert longest == sorted(longest, reverse=True)


def test_templates_put_the_texts_and_the_instruction_in_their_place(folder):
    data, (queries, documents) = some_data([f"find {i % 3}" for i in range(10)]), some_pairs()
    data.queries[0] = "what is {instruction} or {query}"  # braces of the text stay as they are
    rescorer = CrossEncoder(
        model=folder, max_length=128, store=None, query="<{instruction}> {query}?", document="text: {document}"
    )
    shown = [f"<{data.instructions[q]}> {data.queries[q]}?" for q in queries]
    expected = one_by_one(folder, shown, [f"text: {data.documents[d]}" for d in documents])
    assert rescorer.score(data, queries, documents).tolist() == pytest.approx(expected, abs=1e-5)
    assert rescorer.facts()["reads_instructions"] is True


def test_instructions_without_a_place_are_not_read(folder):
    data, (queries, documents) = some_data(["find it"] * 10), some_pairs()
    rescorer = CrossEncoder(model=folder, max_length=128, store=None)
    expected = one_by_one(folder, *texts(data, queries, documents))
    assert rescorer.score(data, queries, documents).tolist() == pytest.approx(expected, abs=1e-5)
    assert rescorer.facts()["reads_instructions"] is False


def test_half_precision_is_near(folder):
    data, (queries, documents) = some_data(), some_pairs()
    full, half = (
        CrossEncoder(model=folder, max_length=128, store=None, dtype=dtype).score(data, queries, documents)
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.3)


# ------------------------------------------------------------------------------------------------------ the store


def no_model(*_):
    raise AssertionError("nothing is left to score")


def test_a_second_run_scores_nothing(folder, tmp_path, monkeypatch):
    data, (queries, documents) = some_data(), some_pairs()
    settings = {"model": folder, "max_length": 128, "store": str(tmp_path / "scores")}
    first = CrossEncoder(**settings).score(data, queries, documents)
    monkeypatch.setattr(CrossEncoder, "_load", no_model)
    again = CrossEncoder(**settings)
    assert torch.equal(again.score(data, queries, documents), first)
    assert again.facts()["scored"] == 0
    assert again.facts()["there"] == again.facts()["pairs"]
    monkeypatch.undo()
    more = CrossEncoder(**settings)  # of another mining: texts are known, numbers are not
    other = some_data()
    other.documents[:] = other.documents[::-1]
    assert torch.equal(more.score(other, queries, 24 - documents), first)
    assert more.facts()["scored"] == 0


@pytest.mark.parametrize(
    "change", [{"max_length": 64}, {"query": "q: {query}"}, {"document": "d: {document}"}, {"dtype": "bfloat16"}]
)
def test_scores_of_other_settings_are_not_taken(folder, tmp_path, change):
    data, (queries, documents) = some_data(), some_pairs()
    settings = {"model": folder, "max_length": 128, "store": str(tmp_path)}
    CrossEncoder(**settings).score(data, queries, documents)
    other = CrossEncoder(**settings | change)
    other.score(data, queries, documents)
    assert other.facts()["there"] == 0


def test_scores_of_other_weights_are_not_taken(tmp_path):
    data, (queries, documents) = some_data(), some_pairs()
    path = reranker(tmp_path)
    settings = {"model": path, "max_length": 128, "store": str(tmp_path / "scores")}
    first = CrossEncoder(**settings).score(data, queries, documents)
    weights = load_file(f"{path}/model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    changed = CrossEncoder(**settings)
    assert torch.allclose(changed.score(data, queries, documents), first + 1, atol=1e-5)
    assert changed.facts()["there"] == 0


def test_what_a_killed_run_has_scored_stays(folder, tmp_path, monkeypatch):
    data, (queries, documents) = some_data(), some_pairs()
    settings = {"model": folder, "max_length": 128, "store": str(tmp_path)}
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 8)
    real, calls = module._logits, []

    def killed(*arguments):
        calls.append(len(arguments[3]))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_logits", killed)
    with pytest.raises(KeyboardInterrupt):
        CrossEncoder(**settings).score(data, queries, documents)
    monkeypatch.setattr(module, "_logits", real)
    again = CrossEncoder(**settings)
    scores = again.score(data, queries, documents)
    assert again.facts()["there"] == sum(calls[:3]) > 0
    assert scores.tolist() == pytest.approx(one_by_one(folder, *texts(data, queries, documents)), abs=1e-5)


# --------------------------------------------------------------------------------------------------------- ranks


def score_of_a_rank(folder, store, queries, documents):
    own = own_queries(10)
    mine = (queries >= own.start) & (queries < own.stop)
    if rank() == 1 and not len(store):
        mine[:] = False  # nothing to do here
    rescorer = CrossEncoder(model=folder, max_length=128, store=store or None)
    return mine, rescorer.score(some_data(), queries[mine], documents[mine]), rescorer.facts()


@pytest.mark.parametrize("stored", [True, False])
def test_ranks_score_their_own_pairs(folder, tmp_path, stored):
    queries, documents = some_pairs()
    store = str(tmp_path) if stored else ""
    parts = run_ranks(score_of_a_rank, 2, folder, store, queries, documents)
    expected = torch.tensor(one_by_one(folder, *texts(some_data(), queries, documents)))
    for mine, scores, facts in parts:
        assert torch.allclose(scores, expected[torch.from_numpy(mine)], atol=1e-5)
        assert facts == parts[0][2]  # of all ranks
    distinct = {(q, d) for mine, _, _ in parts for q, d in zip(queries[mine], documents[mine], strict=True)}
    assert parts[0][2]["pairs"] == len(distinct)
    if stored:
        rescorer = CrossEncoder(model=folder, max_length=128, store=store)
        rescorer.score(some_data(), queries, documents)
        assert rescorer.facts()["scored"] == 0


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query": "no place"}, "miner.rescorer.query: expected a template with {query} in it"),
        ({"document": "{query}"}, "miner.rescorer.document: expected a template with {document} in it"),
        ({"document": "{instruction} {document}"}, "miner.rescorer.document: the place of {instruction} is"),
        ({"dtype": "float16"}, "miner.rescorer.dtype=float16: expected float32 or bfloat16"),
        ({"max_length": 3}, "expected max_length >= 8"),
        ({"max_length": 512}, "miner.rescorer.max_length=512: .* has 128 positions"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{").replace("}", r"\}")):
        CrossEncoder(**{"model": folder, "max_length": 128} | settings)


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has 3 labels, and a score is one number\. .*rescorer=bi_encoder"):
        CrossEncoder(model=reranker(tmp_path, labels=3), max_length=128)


def test_a_model_without_a_head_is_refused(tmp_path):
    """transformers would make a random one."""
    path = tiny_model_dir("bert", tmp_path, num_labels=1)
    with pytest.raises(ConfigError, match=r"is no cross-encoder: its weights lack .*classifier\.weight"):
        CrossEncoder(model=path, max_length=128, store=None).score(some_data(), *some_pairs())


def test_a_query_without_the_instruction_that_the_template_takes_is_named(folder):
    data = some_data(["find", None] * 5)
    rescorer = CrossEncoder(model=folder, max_length=128, store=None, query="{instruction} {query}")
    with pytest.raises(ConfigError, match=f"source toy brings none for the query '{re.escape(data.queries[1])}'"):
        rescorer.score(data, *some_pairs())


def test_a_score_that_is_not_finite_is_named_and_not_kept(tmp_path):
    path = reranker(tmp_path)
    weights = load_file(f"{path}/model.safetensors")
    weights["classifier.bias"] += torch.nan
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"pairs with nan, the first is .* Use dtype=float32"):
        CrossEncoder(model=path, max_length=128, store=str(tmp_path / "s")).score(some_data(), *some_pairs())
    assert not list(Path(tmp_path / "s").rglob("shard-*"))


def test_no_pairs_need_no_model(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(CrossEncoder, "_load", no_model)
    none = np.zeros(0, dtype=np.int64)
    scores = CrossEncoder(model=folder, max_length=128, store=str(tmp_path)).score(some_data(), none, none)
    assert scores.shape == (0,)
