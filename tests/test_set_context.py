"""A sample of the corpus in front of each text: who sets it, who says so, and what it changes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedtrain.assemble import build_encoder
from embedtrain.data.context import choose
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.evaluation.retrieval import PairsEvaluator
from embedtrain.evaluation.similarity import SimilarityEvaluator
from embedtrain.export.sentence_transformers import export
from embedtrain.inference import embed_file
from embedtrain.mining.data import mining_data
from embedtrain.mining.identity import identity
from embedtrain.mining.vectors import embed
from embedtrain.training.stages import plain_weights, take_over
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config

J = 4
PAIRS = [TrainingExample(query=f"where is {w}", positives=(f"{w} lies in the {w} river",)) for w in "abcdefgh"]
CORPUS = [pair.positives[0] for pair in PAIRS]
CONTEXTUAL = ("backbone=contextual", f"backbone.num_context={J}", "backbone.num_prompts=2")


def contextual(folder, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(tiny_config(folder, *CONTEXTUAL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def context_of(encoder: Encoder) -> torch.Tensor | None:
    return encoder.backbone.context  # type: ignore[return-value]


def test_it_is_a_sample_of_the_documents_each_encoded_by_itself_with_its_prompt(folder):
    encoder = contextual(folder)
    encoder.tokenizer.prompts.templates["document"] = "a text: "
    encoder.set_context(CORPUS, chunk_tokens=20)
    expected = []
    for number in choose(len(CORPUS), J, seed=0).tolist():
        tokens, _ = encoder.tokenizer.encode([CORPUS[number]], role="document")
        expected.append(encoder.eval().encode_context(tokens).values[0])
    torch.testing.assert_close(context_of(encoder), torch.stack(expected), rtol=1e-4, atol=1e-5)
    encoder.set_context(CORPUS[:2])
    context = context_of(encoder)
    assert context is not None
    assert context.shape == (J, 32)
    assert len(context.unique(dim=0)) == 2  # all come again in turn
    encoder.set_context(None)
    assert context_of(encoder) is None


def test_an_encoder_that_reads_no_context_takes_none(folder):
    plain = build_encoder(tiny_config(folder))
    before = plain.encode(CORPUS)
    plain.set_context(CORPUS)
    assert torch.equal(plain.encode(CORPUS), before)
    assert "context" not in PairsEvaluator(pairs=PAIRS)(plain).details


def test_without_one_the_log_says_so(folder, caplog):
    encoder = contextual(folder)
    with caplog.at_level(logging.WARNING):
        nothing = encoder.encode(CORPUS)
    assert "No context was set" in caplog.text
    encoder.set_context(CORPUS)
    assert not torch.allclose(encoder.encode(CORPUS), nothing, atol=1e-3)


def measured(folder) -> tuple[dict[str, float], dict[str, str]]:
    torch.set_num_threads(1)
    result = PairsEvaluator(pairs=PAIRS)(contextual(folder))
    return dict(result.metrics), dict(result.details)


def test_retrieval_reads_its_own_corpus_and_ranks_read_the_same(folder):
    alone, details = measured(folder)
    assert details["context"] == f"{J} documents, a sample of 8"
    for metrics, _ in run_ranks(measured, 2, folder):
        assert metrics == alone
    encoder = contextual(folder)
    evaluator = PairsEvaluator(pairs=PAIRS)
    evaluator(encoder)
    again = contextual(folder)
    again.set_context(evaluator.texts)
    torch.testing.assert_close(context_of(encoder), context_of(again))


def test_similarity_reads_its_own_texts(folder, tmp_path):
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n", encoding="utf-8")
    assert SimilarityEvaluator(path=tmp_path / "pairs.tsv")(contextual(folder)).details["context"].startswith("4 doc")


def test_mining_reads_the_corpus_and_vectors_of_another_context_are_others(folder, tmp_path):
    encoder = contextual(folder)
    nothing = identity(encoder)
    data = mining_data(Rows(PAIRS), "s")
    found = embed(encoder, data, root=tmp_path)
    assert context_of(encoder) is not None
    assert found.identity["context"] != nothing["context"]
    again = embed(encoder, data, root=tmp_path)
    assert (again.folder, again.encoded) == (found.folder, 0)
    encoder.set_context(CORPUS[:3])
    assert identity(encoder)["context"] not in (nothing["context"], found.identity["context"])
    assert "context" not in identity(build_encoder(tiny_config(folder)))


def test_a_stage_hands_on_both_encoders_and_what_is_around_them(folder, tmp_path):
    trained, new = contextual(folder), contextual(folder, seed=1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in plain_weights(trained).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    take_over(new, tmp_path / "weights.safetensors")
    for (name, a), b in zip(new.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_embed_takes_a_corpus_where_the_model_reads_one(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(CORPUS[:2]), encoding="utf-8")
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    encoder = contextual(folder)
    encoder.set_context(CORPUS[:3])
    export(encoder, tmp_path / "model", probes=CORPUS)
    vectors = []
    for context in (None, tmp_path / "corpus.txt"):
        embed_file(str(tmp_path / "model"), tmp_path / "texts.txt", tmp_path / "v.npy", role="query", context=context)
        vectors.append(np.load(tmp_path / "v.npy"))
    np.testing.assert_allclose(vectors[0], encoder.encode(CORPUS[:2]).numpy(), atol=1e-5)
    encoder.set_context(CORPUS)
    np.testing.assert_allclose(vectors[1], encoder.encode(CORPUS[:2]).numpy(), atol=1e-5)
    export(build_encoder(tiny_config(folder)), tmp_path / "plain", probes=CORPUS)
    files = (tmp_path / "texts.txt", tmp_path / "v.npy")
    with pytest.raises(ConfigError, match="reads no documents in front of a text"):
        embed_file(str(tmp_path / "plain"), *files, role="query", context=tmp_path / "corpus.txt")
