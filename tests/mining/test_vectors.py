from __future__ import annotations

import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from embedtrain import distributed
from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError, DataError
from embedtrain.mining import vectors as module
from embedtrain.mining.data import mining_data
from embedtrain.mining.records import MiningData
from embedtrain.mining.vectors import ArrayVectors, Embedded, embed, in_precision
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.store.reader import VectorStore, shard_names
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import RankFailedError, run_ranks
from tests.mining.encoders import encoder_of
from tests.mining.rows import Rows, row

WORDS = "red green blue small large old new round fast slow cat dog bird fish".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_model_dir("bert", tmp_path_factory.mktemp("vectors"))


def some_data(count: int = 12, **options) -> MiningData:
    """Rows of texts of many lengths; each asks what another one asks too."""
    rows = [
        row(
            f"where is {' '.join(WORDS[: i % 5])} {i % (count - 2)}",
            f"{WORDS[i % 7]} {' '.join(WORDS[i % 4 : i % 9])} {i}",
            negatives=[f"no {WORDS[(3 * i) % 14]}", "elsewhere"],
            **options,
        )
        for i in range(count)
    ]
    return mining_data(Rows(rows), "toys")


def expected(encoder, data: MiningData, source: str = "toys") -> tuple[np.ndarray, np.ndarray]:
    """Each text by itself."""
    queries = [
        encoder.encode([text], role="query", source=source, instructions=[told])
        for text, told in zip(data.queries, data.instructions, strict=True)
    ]
    documents = [encoder.encode([text], role="document", source=source) for text in data.documents]
    return torch.cat(queries).numpy(), torch.cat(documents).numpy()


def everything(embedded: Embedded) -> tuple[np.ndarray, np.ndarray]:
    return embedded.queries.rows(slice(None)), embedded.documents.rows(slice(None))


def assert_same(embedded: Embedded, wanted: tuple[np.ndarray, np.ndarray], atol: float = 1e-6) -> None:
    for found, one in zip(everything(embedded), wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, one, rtol=0, atol=atol)


def no_encoding(encoder):
    def raises(*_, **__):
        raise AssertionError("there was nothing to encode")

    encoder.encode = raises
    return encoder


@pytest.mark.parametrize(("numbers", "atol"), [("float32", 1e-6), ("float16", 1e-3)])
def test_vectors_are_those_of_the_encoder(folder, tmp_path, numbers, atol):
    encoder, data = encoder_of(folder), some_data()
    embedded = embed(encoder, data, root=tmp_path, numbers=numbers)
    assert_same(embedded, expected(encoder, data), atol)
    assert (len(embedded.queries), len(embedded.documents)) == (len(data.queries), len(data.documents))
    assert embedded.queries.dim == embedded.documents.dim == 32
    assert (embedded.encoded, embedded.there) == (len(data.queries) + len(data.documents), 0)
    assert embedded.num_zero == 0
    assert embedded.seconds > 0
    assert embedded.folder.parent == tmp_path
    assert len(embedded.folder.name) == 16


def test_a_second_run_encodes_nothing(folder, tmp_path):
    data = some_data()
    first = embed(encoder_of(folder), data, root=tmp_path)
    again = embed(no_encoding(encoder_of(folder)), data, root=tmp_path)
    assert (again.encoded, again.there) == (0, first.encoded)
    assert_same(again, everything(first), atol=0)
    assert again.facts() == first.facts() | {
        "encoded": 0,
        "there": first.encoded,
        "embed_seconds": again.seconds,
    }


def test_what_is_new_is_added_and_what_was_there_stays(folder, tmp_path):
    encoder = encoder_of(folder)
    few, many = some_data(7), some_data(12)
    first = embed(encoder, few, root=tmp_path)
    second = embed(encoder, many, root=tmp_path)
    texts = {("q", text) for text in many.queries} | {("d", text) for text in many.documents}
    known = {("q", text) for text in few.queries} | {("d", text) for text in few.documents}
    assert 0 < second.encoded == len(texts - known)
    assert second.there == len(texts & known)
    assert_same(second, expected(encoder, many))
    assert_same(first, expected(encoder, few))  # its shards have not moved


def test_changed_weights_never_meet_old_vectors_and_equal_ones_find_theirs(folder, tmp_path):
    data, encoder = some_data(6), encoder_of(folder)
    before = embed(encoder, data, root=tmp_path)
    weight = encoder.backbone.hf_model.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight.mul_(2)
    changed = embed(encoder, data, root=tmp_path)
    assert changed.folder != before.folder
    assert changed.encoded == before.encoded
    assert_same(changed, expected(encoder, data))
    assert np.abs(everything(changed)[1] - everything(before)[1]).max() > 0.01
    with torch.no_grad():
        weight.div_(2)
    assert embed(no_encoding(encoder), data, root=tmp_path).folder == before.folder
    assert embed(encoder_of(folder), data, root=tmp_path, numbers="float16").folder != before.folder


def test_bf16_has_a_store_of_its_own_and_the_encoder_is_as_before(folder, tmp_path):
    data, encoder = some_data(6), encoder_of(folder)
    full = embed(encoder, data, root=tmp_path)
    with in_precision(encoder, "bf16") as half_encoder:
        half = embed(half_encoder, data, root=tmp_path)
    assert encoder.encode_dtype is None
    assert half.folder != full.folder
    difference = np.abs(everything(half)[1] - everything(full)[1]).max()
    assert 0 < difference < 0.02
    encoder.encode_dtype = torch.bfloat16
    with in_precision(encoder, None) as own:  # that of the run it trains in
        assert embed(no_encoding(own), data, root=tmp_path).folder == half.folder


def test_prompts_are_of_the_source_and_instructions_of_the_query(folder, tmp_path):
    prompts = Prompts(query="{instruction}: ", sources={"toys": {"document": "toy: "}})
    encoder = encoder_of(folder, prompts=prompts)
    told = [row("q", "a", instruction="find"), row("q", "b", instruction="rank"), row("r", "a", instruction="find")]
    data = mining_data(Rows(told), "toys")
    ours = embed(encoder, data, root=tmp_path)
    assert_same(ours, expected(encoder, data))
    assert np.abs(ours.queries.rows(np.array([0])) - ours.queries.rows(np.array([1]))).max() > 1e-3
    other = embed(encoder, data, root=tmp_path, source="books")
    assert (other.encoded, other.there) == (2, 3)  # documents have another prompt there, queries the same
    assert_same(other, expected(encoder, data, "books"))


def test_documents_whose_prompt_wants_the_instruction_get_that_of_all_queries(folder, tmp_path):
    encoder = encoder_of(folder, prompts=Prompts(query="{instruction}: ", document="{instruction}: "))
    data = some_data(4, instruction="compare")
    found = embed(encoder, data, root=tmp_path).documents.rows(slice(None))
    told = ["compare"] * len(data.documents)
    wanted = encoder.encode(data.documents, role="document", source="toys", instructions=told).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    several = mining_data(Rows([row("q", "a", instruction="find"), row("r", "b", instruction="rank")]), "toys")
    with pytest.raises(ConfigError, match=r"documents of source 'toys' .* 2 different ones.*one instruction"):
        embed(encoder, several, root=tmp_path)


def test_rows_are_copies_by_number_in_any_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 3)
    encoder, data = encoder_of(folder), some_data()
    documents = embed(encoder, data, root=tmp_path, shard_texts=4).documents
    whole = expected(encoder, data)[1]
    assert len(documents.store.shards) > 4
    for index in (slice(3, 9), slice(0, 0), slice(None, None, 2), np.array([7, 0, 7, 3]), np.array([], dtype=np.int64)):
        found = documents.rows(index)
        np.testing.assert_allclose(found, whole[index], rtol=0, atol=1e-6)
        found[:] = 0
    np.testing.assert_allclose(documents.rows(slice(None)), whole, rtol=0, atol=1e-6)


def test_longest_texts_come_first_in_blocks_and_shards_stay_small(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 4)
    encoder, data = encoder_of(folder), some_data()
    asked: list[tuple[str, list[str]]] = []
    encode = encoder.encode
    encoder.encode = lambda texts, **options: asked.append((options["role"], texts)) or encode(texts, **options)
    embedded = embed(encoder, data, root=tmp_path, shard_texts=6)
    for role, texts in (("query", data.queries), ("document", data.documents)):
        blocks = [block for of, block in asked if of == role]
        assert max(map(len, blocks)) <= 4
        lengths = [len(text) for block in blocks for text in block]
        assert lengths == sorted(map(len, texts), reverse=True)
    sizes = [shard.keys.size for shard in VectorStore(embedded.folder).shards]
    assert sum(sizes) == embedded.encoded
    assert max(sizes) <= 6 + 4 - 1


def test_a_failure_costs_no_text_that_was_encoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 4)
    data, encoder = some_data(), encoder_of(folder)
    encode, calls = encoder.encode, []

    def fails(texts, **options):
        calls.append(len(texts))
        if len(calls) == 4:
            raise RuntimeError("the lights went out")
        return encode(texts, **options)

    encoder.encode = fails
    with pytest.raises(RuntimeError, match="lights"):
        embed(encoder, data, root=tmp_path, shard_texts=4)
    again = embed(encoder_of(folder), data, root=tmp_path)
    assert again.there == sum(calls[:3])
    assert again.encoded == len(data.queries) + len(data.documents) - again.there
    assert_same(again, expected(encoder_of(folder), data))


def embed_on_rank(folder: str, root: str, dies_at: int | None = None) -> tuple:
    torch.set_num_threads(1)
    module._TEXTS_AT_ONCE = 4
    encoder, data = encoder_of(folder), some_data()
    encode, calls = encoder.encode, []

    def counted(texts, **options):
        calls.append(len(texts))
        if len(calls) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts, **options)

    encoder.encode = counted
    embedded = embed(encoder, data, root=Path(root), shard_texts=4)
    cost = (embedded.encoded, embedded.there, embedded.num_zero, str(embedded.folder))
    return everything(embedded), cost, sum(calls), distributed.rank()


def test_two_ranks_share_the_work_and_one_that_was_killed_goes_on(folder, tmp_path):
    data, encoder = some_data(), encoder_of(folder)
    alone = embed(encoder, data, root=tmp_path / "alone")
    with pytest.raises(RankFailedError, match="died without a word"):
        run_ranks(embed_on_rank, 1, folder, str(tmp_path / "both"), 4)
    store = VectorStore(tmp_path / "both" / alone.folder.name)
    left = len(store)
    assert left == 2 * 4  # of ten queries; two more were not yet a shard

    first, second = run_ranks(embed_on_rank, 2, folder, str(tmp_path / "both"))
    assert first[1] == second[1] == (alone.encoded - left, left, 0, str(store.path))
    assert first[2] + second[2] == alone.encoded - left
    assert abs(first[2] - second[2]) <= 2  # one for each role
    for found, other, wanted in zip(first[0], second[0], everything(alone), strict=True):
        np.testing.assert_array_equal(found, other)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    keys = [np.sort(np.concatenate([s.keys for s in VectorStore(path).shards])) for path in (alone.folder, store.path)]
    np.testing.assert_array_equal(*keys)
    embed(no_encoding(encoder), data, root=tmp_path / "both")  # on one rank, what two have written


def test_no_more_than_a_shard_of_vectors_is_in_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 256)
    encoder = encoder_of(folder, projection_dim=1024)
    encoder.encode = lambda texts, **options: torch.ones(len(texts), 1024)
    data = mining_data(Rows([row(f"q{i}", f"a{i}") for i in range(3000)]), "s")
    tracemalloc.start()
    try:
        embedded = embed(encoder, data, root=tmp_path, shard_texts=512)
        for start in range(0, 3000, 500):
            assert embedded.documents.rows(slice(start, start + 500)).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    shard, everything = 512 * 1024 * 4, 6000 * 1024 * 4
    assert peak < 5 * shard < everything / 2


def test_zero_vectors_are_counted_whenever_they_were_written(folder, tmp_path):
    encoder, data = encoder_of(folder, normalize=False), some_data(5)
    encode = encoder.encode
    zero = {data.documents[2], data.documents[4], data.queries[0]}

    def with_zeros(texts, **options):
        vectors = encode(texts, **options)
        vectors[[i for i, text in enumerate(texts) if text in zero]] = 0
        return vectors

    encoder.encode = with_zeros
    assert embed(encoder, data, root=tmp_path).num_zero == 3
    again = embed(no_encoding(encoder), data, root=tmp_path)
    assert again.num_zero == 3
    assert not again.documents.rows(np.array([2, 4])).any()
    assert again.facts()["zero_vectors"] == 3


def test_vectors_of_an_encoder_without_norm_keep_their_length(folder, tmp_path):
    encoder, data = encoder_of(folder, normalize=False), some_data(5)
    embedded = embed(encoder, data, root=tmp_path)
    assert_same(embedded, expected(encoder, data), atol=1e-5)
    assert np.abs(np.linalg.norm(embedded.documents.rows(slice(None)), axis=1) - 1).min() > 0.1


def test_a_vector_that_is_not_finite_names_its_text(folder, tmp_path):
    encoder, data = encoder_of(folder), some_data(5)
    encode = encoder.encode

    def broken(texts, **options):
        vectors = encode(texts, **options)
        vectors[[i for i, text in enumerate(texts) if text == data.documents[3]]] = float("nan")
        return vectors

    encoder.encode = broken
    with pytest.raises(DataError, match=rf"1 of \d+ texts .* not finite, the first is '{data.documents[3]}'"):
        embed(encoder, data, root=tmp_path)


def test_an_encoder_of_several_vectors_is_refused(folder, tmp_path):
    encoder = encoder_of(folder, pooling=MultiVectorPooling(hidden_size=32, punctuation_ids=[], dim=8))
    with pytest.raises(ConfigError, match=r"MultiVectorPooling gives several vectors per text.*miner\.model=.*bm25"):
        embed(encoder, some_data(3), root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_store_must_be_of_this_model(folder, tmp_path):
    data = some_data(5)
    mine = embed(encoder_of(folder), data, root=tmp_path)
    named = embed(no_encoding(encoder_of(folder)), data, root=mine.folder)
    assert named.folder == mine.folder
    with pytest.raises(
        DataError, match=r"not those of this model \(store / model\): max_query_length 16 / 12\. .*another folder"
    ):
        embed(encoder_of(folder, lengths=(12, 24)), data, root=mine.folder)


def test_a_shard_that_is_cut_short_can_be_deleted_and_made_again(folder, tmp_path):
    data = some_data(5)
    embedded = embed(encoder_of(folder), data, root=tmp_path)
    path = embedded.folder / shard_names(embedded.folder)[0]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"cut short.*Delete this file and run the same command again") as caught:
        embed(encoder_of(folder), data, root=tmp_path)
    assert "teach" not in str(caught.value)
    path.unlink()
    assert_same(embed(encoder_of(folder), data, root=tmp_path), expected(encoder_of(folder), data))


def test_an_array_is_vectors_too():
    array = np.arange(12, dtype=np.float16).reshape(4, 3)
    vectors = ArrayVectors(array)
    assert (len(vectors), vectors.dim) == (4, 3)
    found = vectors.rows(np.array([2, 0]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array[[2, 0]])
    part = vectors.rows(slice(1, 3))
    part[:] = 0
    np.testing.assert_array_equal(vectors.rows(slice(None)), array)
