import math

import numpy as np
import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.export.load import load_encoder
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.rescorers.bi_encoder import BiEncoder
from tests.helpers.ranks import run_ranks
from tests.mining.rescorers.folders import embedding_model, some_data, some_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return embedding_model(tmp_path_factory.mktemp("teacher"), prompts={"query": "q: ", "document": ""})


def one_by_one(folder: str, queries: list[str], documents: list[str]) -> list[float]:
    """Of whole texts, prompts included."""
    encoder = load_encoder(folder)
    encoder.tokenizer.prompts.templates = {"query": "", "document": ""}
    pairs = zip(queries, documents, strict=True)
    vectors = [
        (encoder.encode([q], role="query")[0].tolist(), encoder.encode([d], role="document")[0].tolist())
        for q, d in pairs
    ]
    return [math.fsum(a * b for a, b in zip(query, document, strict=True)) for query, document in vectors]


def test_scores_are_the_inner_products_of_its_embeddings(folder, tmp_path):
    data, (queries, documents) = some_data(), some_pairs()
    rescorer = BiEncoder(model=folder, store=str(tmp_path))
    scores = rescorer.score(data, queries, documents)
    asked, answers = [f"q: {data.queries[q]}" for q in queries], [data.documents[d] for d in documents]
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(one_by_one(folder, asked, answers), abs=1e-5)
    facts = rescorer.facts()
    assert facts["encoded"] == len({*queries.tolist()}) + len({*documents.tolist()})  # those in some pair
    again = BiEncoder(model=folder, store=str(tmp_path))
    assert torch.equal(again.score(data, queries, documents), scores)
    assert again.facts()["encoded"] == 0


def test_prompts_of_the_config_take_the_place_of_the_folders(folder, tmp_path):
    data, (queries, documents) = some_data([f"find {i % 3}" for i in range(10)]), some_pairs()
    own = BiEncoder(model=folder, store=str(tmp_path))
    told = BiEncoder(model=folder, store=str(tmp_path), prompts={"query": "{instruction}: ", "document": "d: "})
    asked = [f"q: {data.queries[q]}" for q in queries]
    expected = one_by_one(folder, asked, [data.documents[d] for d in documents])
    assert own.score(data, queries, documents).tolist() == pytest.approx(expected, abs=1e-5)
    assert own.facts()["reads_instructions"] is False
    asked = [f"{data.instructions[q]}: {data.queries[q]}" for q in queries]
    expected = one_by_one(folder, asked, [f"d: {data.documents[d]}" for d in documents])
    assert told.score(data, queries, documents).tolist() == pytest.approx(expected, abs=1e-5)
    assert told.facts()["reads_instructions"] is True


def test_half_precision_is_near_and_another_store(folder, tmp_path):
    data, (queries, documents) = some_data(), some_pairs()
    full, half = (BiEncoder(model=folder, store=str(tmp_path), dtype=dtype) for dtype in ("float32", "bfloat16"))
    difference = full.score(data, queries, documents) - half.score(data, queries, documents)
    assert 0 < difference.abs().max() < 0.05
    assert full.facts()["store"] != half.facts()["store"]


def score_of_a_rank(folder, store, queries, documents):
    own = own_queries(10)
    mine = (queries >= own.start) & (queries < own.stop)
    rescorer = BiEncoder(model=folder, store=store)
    return rescorer.score(some_data(), queries[mine], documents[mine]), mine, rescorer.facts()["encoded"]


def test_ranks_embed_each_text_once(folder, tmp_path):
    queries, documents = some_pairs()
    documents[queries < 9] = 3  # documents of both ranks, and a first rank with few
    expected = BiEncoder(model=folder, store=str(tmp_path / "one"))
    scores = expected.score(some_data(), queries, documents)
    for part, mine, encoded in run_ranks(score_of_a_rank, 2, folder, str(tmp_path / "two"), queries, documents):
        assert torch.allclose(part, scores[torch.from_numpy(mine)], atol=1e-6)
        assert encoded == expected.facts()["encoded"]


def test_no_pairs_on_any_rank_are_no_mistake(folder, tmp_path):
    none = np.zeros(0, dtype=np.int64)
    assert BiEncoder(model=folder, store=str(tmp_path)).score(some_data(), none, none).shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": {"passage": "p: "}}, "prompts: expected query and document, got passage"),
        ({"dtype": "float16"}, "dtype=float16: expected float32 or bfloat16"),
        ({"numbers": "int8"}, "numbers=int8: expected float32 or float16"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        BiEncoder(model=folder, **settings)
