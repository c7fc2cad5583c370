"""k-means over the rows of a source, and whole runs whose batches are neighbourhoods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedtrain.assemble import build_encoder
from embedtrain.config.build import build
from embedtrain.config.compose import compose_config
from embedtrain.config.validate import validate
from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Sampler
from embedtrain.data.sources import BeirFolder
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError, TrainingError
from embedtrain.export.sentence_transformers import export
from embedtrain.mining import neighbourhoods as module
from embedtrain.mining.clustering import Clustering, walk
from embedtrain.mining.neighbourhoods import KMeans
from embedtrain.planning import make_plan
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows, pairs
from tests.evaluation.stand_ins import shared_data
from tests.helpers.models import minilm_dir, tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_settings, tiny_trainer, train_tiny, write_pairs

ON = "neighbourhoods@data.neighbourhoods=kmeans"


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def blobs(count: int, rows: int, *, dim: int = 16, noise: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around `count` directions, in no order, and whose each is."""
    generator = np.random.default_rng(seed)
    centres = unit(generator.normal(size=(count, dim)))
    owner = generator.permutation(np.repeat(np.arange(count), rows))
    return unit(centres[owner] + noise * generator.normal(size=(owner.size, dim))), owner


def counted(encoder: Encoder) -> list[int]:
    """How many texts each call to `encode` brings from now on."""
    calls: list[int] = []
    whole = encoder.encode

    def encode(texts: list[str], **options: Any) -> torch.Tensor:
        calls.append(len(texts))
        return whole(texts, **options)

    encoder.encode = encode  # type: ignore[method-assign,assignment]
    return calls


def clustered(vectors: np.ndarray, count: int, **settings: Any) -> np.ndarray:
    settings = {"iterations": 25, "seed": 0, "train_points": len(vectors), **settings}
    clustering = Clustering(vectors, count, **settings)
    for _ in clustering.pieces():
        pass
    return clustering.clusters


# ------------------------------------------------------------------------------------------------------------ k-means


def test_planted_clusters_are_found_and_their_parts_are_neighbours():
    """More clusters than were planted: each lies in one of those, and the walk goes through one of those after the other."""
    vectors, owner = blobs(5, 64)
    clusters = clustered(vectors, 20)
    owners = [set(owner[clusters == c].tolist()) for c in range(clusters.max() + 1)]
    assert all(len(one) == 1 for one in owners)
    visited = [min(one) for one in owners]
    assert sum(a != b for a, b in pairwise(visited)) == 4


def test_steps_of_one_iteration_are_what_faiss_does_at_once():
    vectors, _ = blobs(6, 40, noise=0.5)
    at_once = faiss.Kmeans(16, 12, niter=7, seed=3, spherical=True, min_points_per_centroid=1)
    at_once.train(vectors)
    expected = at_once.assign(vectors)[1]
    clusters = clustered(vectors, 12, iterations=7, seed=3)
    assert (
        len({*zip(expected.tolist(), clusters.tolist(), strict=True)}) == np.unique(expected).size
    )  # but for their numbers


def test_a_row_is_in_the_cluster_of_its_nearest_centroid():
    """By a slow loop: no row is nearer to the mean direction of another cluster, once nothing moves any more."""
    vectors, _ = blobs(4, 30, noise=0.4)
    clusters = clustered(vectors, 6, iterations=100)
    means = [vectors[clusters == c].sum(0) for c in range(clusters.max() + 1)]
    for row, vector in enumerate(vectors):
        similar = [float(vector @ mean / np.linalg.norm(mean)) for mean in means]
        assert similar[clusters[row]] >= max(similar) - 1e-5


def test_clusters_are_a_function_of_vectors_and_seed_whatever_the_threads():
    vectors, _ = blobs(8, 500, noise=0.6)
    before = faiss.omp_get_max_threads()
    try:
        made = []
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            made.append(clustered(vectors, 40, iterations=5))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], clustered(vectors, 40, iterations=5, seed=1))


def test_all_rows_are_assigned_where_some_train():
    vectors, owner = blobs(4, 100)
    clusters = clustered(vectors, 16, train_points=64)
    assert clusters.size == 400
    assert all(len(set(owner[clusters == c].tolist())) == 1 for c in range(clusters.max() + 1))
    assert not np.array_equal(clusters, clustered(vectors, 16))


def test_a_walk_goes_to_the_nearest_that_is_left():
    """Against a slow loop."""
    centroids = unit(np.random.default_rng(0).normal(size=(12, 4)))
    expected, left = [0], set(range(1, 12))
    while left:
        here = centroids[expected[-1]]
        expected.append(max(left, key=lambda c: float(centroids[c] @ here)))
        left.remove(expected[-1])
    assert walk(centroids).tolist() == expected


# ------------------------------------------------------------------------------------------------------- of a source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and pairs."""
    folder = tmp_path_factory.mktemp("tiny")
    Path(tiny_model_dir("bert", folder)).rename(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """Another model, as a folder of sentence-transformers."""
    torch.manual_seed(3)
    export(
        build_encoder(tiny_config(folder, "encoder.projection_dim=8")), folder / "exported", probes=["red"], record=None
    )
    return folder / "exported"


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(tiny_config(folder)).eval()


def mixture(rows: list[TrainingExample] | None = None, **common: Any) -> Mixture:
    return Mixture(sources={"s": Rows(rows or pairs(40), **common)})


def of_subjects() -> list[TrainingExample]:
    """4 subjects in turn, 12 rows each, which read alike."""
    subjects = ("red bird", "slow river stone", "cloud", "old tree road road")
    return [TrainingExample(query=subjects[n % 4], positives=(f"{subjects[n % 4]} is here",)) for n in range(48)]


def test_rows_of_a_subject_are_a_cluster(encoder, tmp_path):
    """12 clusters are asked for, and there are 4 different vectors: clusters without a row are left out."""
    clusters = KMeans(rows_per_cluster=4).clusters_of(
        mixture(of_subjects()), batch_size=8, encoder=encoder, run_dir=tmp_path
    )["s"]
    assert clusters[:4].tolist() == clusters[4:8].tolist()
    assert sorted(clusters[:4].tolist()) == [0, 1, 2, 3]
    assert clusters.tolist() == clusters[:4].tolist() * 12


@pytest.mark.parametrize("embed", ["query", "positive", "both"])
def test_a_row_is_its_query_its_first_positive_or_the_sum_of_them(encoder, embed):
    rows = [TrainingExample(query=f"red {n}", positives=(f"blue bird {n}", "another")) for n in range(5)]
    query = encoder.encode([row.query for row in rows], role="query")
    positive = encoder.encode([row.positives[0] for row in rows], role="document")
    expected = {"query": query, "positive": positive, "both": query + positive}[embed]
    vectors = KMeans(embed=embed)._vectors("s", Rows(rows), encoder)
    torch.testing.assert_close(torch.from_numpy(vectors), torch.nn.functional.normalize(expected, dim=-1))


def test_prompts_and_instructions_are_those_of_training(folder):
    prompted = build_encoder(tiny_config(folder, "prompts.query='{instruction} :'", "prompts.document='read: '"))
    rows = [TrainingExample(query=f"red {n}", positives=(f"bird {n}",), instruction=f"find {n}") for n in range(3)]
    asked = prompted.encode(
        [row.query for row in rows], role="query", instructions=[row.instruction for row in rows]
    ) + prompted.encode([row.positives[0] for row in rows], role="document")
    vectors = KMeans()._vectors("s", Rows(rows), prompted)
    torch.testing.assert_close(torch.from_numpy(vectors), torch.nn.functional.normalize(asked, dim=-1))


def test_a_cluster_has_as_many_rows_as_a_batch_where_nothing_else_is_said(encoder, tmp_path):
    rows = mixture(pairs(100), batch_size=None)
    assert KMeans().num_clusters(100, 8) == 13
    assert KMeans(rows_per_cluster=30).num_clusters(100, 8) == 4
    KMeans().clusters_of(rows, batch_size=20, encoder=encoder, run_dir=tmp_path / "a")
    KMeans().clusters_of(mixture(pairs(100), batch_size=10), batch_size=20, encoder=encoder, run_dir=tmp_path / "b")
    KMeans().clusters_of(rows, batch_size=20, softmaxes=(2, 2), encoder=encoder, run_dir=tmp_path / "c")
    counts = [json.loads((tmp_path / run / "neighbourhoods" / "s.json").read_text())["clusters"] for run in "abc"]
    assert counts == [5, 10, 20]  # of what shares negatives


def test_a_source_of_one_cluster_is_not_embedded(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(encoder, "encode", None)
    clusters = KMeans().clusters_of(mixture(), batch_size=64, encoder=encoder, run_dir=tmp_path)
    assert clusters["s"].tolist() == [0] * 40


def found_by_a_rank(folder: Path, run_dir: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The vectors that it holds of 100 rows, their clusters, and how many texts it embedded in each call."""
    torch.set_num_threads(1)
    module._ROWS_AT_ONCE = 16
    encoder = build_encoder(tiny_config(folder))
    calls = counted(encoder)
    vectors = KMeans()._vectors("s", Rows(pairs(100)), encoder)
    settings = KMeans(rows_per_cluster=4)
    clusters = settings.clusters_of(mixture(pairs(100)), batch_size=8, encoder=encoder, run_dir=run_dir)
    return vectors, clusters["s"], calls


def test_ranks_share_the_texts_and_find_the_same_to_the_bit_whatever_their_number(folder, tmp_path, monkeypatch):
    """A block of rows goes to one rank as a whole, since a vector may differ in its last bits by what is embedded with it."""
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 16)
    vectors, clusters, calls = found_by_a_rank(folder, tmp_path / "1")
    assert sum(calls) == 4 * 100
    (whole, _, _), *others = ranks = run_ranks(found_by_a_rank, 4, folder, tmp_path / "4")
    assert np.array_equal(whole, vectors)
    assert all(held.size == 0 for held, _, _ in others)
    assert all(np.array_equal(same, clusters) for _, same, _ in ranks)
    assert sum(sum(calls) for _, _, calls in ranks) == 4 * 100
    assert max(sum(calls) for _, _, calls in ranks) == 4 * 2 * 16  # 7 blocks for 4 ranks


def test_what_cannot_be_is_refused(folder, encoder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.neighbourhoods\.rows_per_cluster=1: expected at least 2"):
        KMeans(rows_per_cluster=1)
    with pytest.raises(ConfigError, match=r"data\.neighbourhoods\.embed='documents': expected query, positive or both"):
        KMeans(embed="documents")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"train_points=3: data\.sources\.s has 10 clusters, which cannot be learned from"
    ):
        KMeans(rows_per_cluster=4, train_points=3).clusters_of(
            mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path
        )
    many = build_encoder(tiny_config(folder, "pooling=multi_vector", "loss=colbert"))
    with pytest.raises(
        ConfigError, match=r"data\.neighbourhoods\.model=null: MultiVectorPooling gives several vectors per text"
    ):
        KMeans().clusters_of(mixture(), batch_size=8, encoder=many, run_dir=tmp_path)


def test_embeddings_that_are_not_finite_are_refused(folder, tmp_path):
    broken = build_encoder(tiny_config(folder))
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=r"among rows 0 to 39 of data\.sources\.s are embeddings that are not finite"
    ):
        KMeans().clusters_of(mixture(), batch_size=8, encoder=broken, run_dir=tmp_path)


def test_documents_of_a_neighbourhood_are_harder_negatives_than_those_of_a_random_batch():
    """125 questions of as many threads of StackFAQ: how similar a query is to the answers of the others in its batch."""
    source = BeirFolder(path=str(shared_data("faq-stackfaq")), split="dev")
    encoder = build_encoder(
        compose_config(
            [f"backbone.name={minilm_dir()}", "encoder.max_query_length=32", "encoder.max_document_length=48"]
        ).config
    )
    rows = Mixture(sources={"s": source})
    queries, answers = (KMeans(embed=side)._vectors("s", source, encoder) for side in ("query", "positive"))

    def similarity(clusters: dict[str, np.ndarray]) -> float:
        plan = Sampler(rows, seed=0, global_batch_size=8, clusters=clusters).epoch(0)
        found = []
        for step in range(len(plan)):
            batch = plan[step].row
            similar = queries[batch] @ answers[batch].T
            found.append(similar[~np.eye(batch.size, dtype=bool)].mean())
        return float(np.mean(found))

    assert similarity({"s": clustered(unit(queries + answers), 16)}) > 2 * similarity({})


# -------------------------------------------------------------------------------------------------- of a run: its files


def test_a_start_before_the_first_checkpoint_takes_what_is_there_only_where_it_would_find_the_same(encoder, tmp_path):
    calls = counted(encoder)
    first = KMeans(rows_per_cluster=8).clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
    assert calls == [40, 40]
    again = KMeans(rows_per_cluster=8).clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
    assert calls == [40, 40]
    assert np.array_equal(first, again)
    for changed, rows in (
        (KMeans(rows_per_cluster=8, seed=1), pairs(40)),
        (KMeans(rows_per_cluster=8), pairs(40, "x")),
    ):
        del calls[:]
        changed.clusters_of(mixture(rows), batch_size=8, encoder=encoder, run_dir=tmp_path)
        assert calls == [40, 40]
    with torch.no_grad():
        next(p for name, p in encoder.named_parameters() if name.endswith("bias")).add_(1)
    del calls[:]
    KMeans(rows_per_cluster=8).clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)
    assert calls == [40, 40]
    encoder.encode_dtype = torch.bfloat16
    KMeans(rows_per_cluster=8).clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)
    assert calls == [40, 40] * 2


def test_a_start_that_was_killed_while_it_wrote_is_no_obstacle(encoder, tmp_path):
    settings = KMeans(rows_per_cluster=8)
    first = settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
    array, said = (tmp_path / "neighbourhoods" / f"s.{end}" for end in ("npy", "json"))
    whole = said.read_text()
    for left in ("", whole[:20]):  # neither written, or not to its end
        said.write_text(left) if left else said.unlink()
        again = settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
        assert np.array_equal(first, again)
        assert said.read_text() == whole
    array.write_bytes(array.read_bytes()[:50])
    again = settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
    assert np.array_equal(first, again)


def test_a_run_with_a_checkpoint_reads_and_never_finds_again(encoder, tmp_path):
    calls = counted(encoder)
    settings = KMeans(rows_per_cluster=8)
    first = settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    del calls[:]
    again = settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)["s"]
    assert np.array_equal(first, again)
    assert calls == []
    with pytest.raises(TrainingError, match=r"s\.npy: the clusters are not of the rows that data\.sources\.s has now"):
        settings.clusters_of(mixture(pairs(40, "x")), batch_size=8, encoder=encoder, run_dir=tmp_path)
    path = tmp_path / "neighbourhoods" / "s.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\7")
    with pytest.raises(CheckpointError, match=r"s\.npy is not as it was written\. The batches of this run are neighb"):
        settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"s\.npy is missing\. .* cannot go on exactly\. Restore the files"):
        settings.clusters_of(mixture(), batch_size=8, encoder=encoder, run_dir=tmp_path)


def test_a_source_may_have_a_name_that_is_no_file_name(encoder, tmp_path):
    named = Mixture(sources={"a/../b": Rows(pairs(20))})
    KMeans(rows_per_cluster=5).clusters_of(named, batch_size=8, encoder=encoder, run_dir=tmp_path)
    assert sorted(path.name for path in (tmp_path / "neighbourhoods").iterdir()) == [
        "a%2F..%2Fb.json",
        "a%2F..%2Fb.npy",
    ]


# ------------------------------------------------------------------------------------------------------- whole runs


def run_of(folder: Path, *overrides: str, name: str) -> dict[str, Any]:
    return tiny_config(folder, ON, "data.neighbourhoods.rows_per_cluster=4", *overrides, name=name)


def stopped(config: dict[str, Any]):
    return train_tiny(config, stop_after=2)


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_run_goes_on_with_the_same_batches_to_the_bit(folder, world):
    def trained(function, config):
        return [function(config)] if world == 1 else run_ranks(function, world, config)

    straight = trained(train_tiny, run_of(folder, name=f"straight{world}"))
    config = run_of(folder, name=f"stopped{world}")
    first, rest = trained(stopped, config), trained(train_tiny, config)
    for (steps, expected, batches), (_, _, before), (total, weights, after) in zip(straight, first, rest, strict=True):
        assert (steps, total) == (6, 6)
        assert before + after == batches
        assert torch.equal(weights, expected)


def of_two_sources(folder: Path, exported: Path, name: str) -> dict[str, Any]:
    """Without dropout, whose masks belong to ranks, and with a larger eps: see `tests/training/test_resume.py`."""
    more = write_pairs(folder / "more.jsonl", 17, negatives=0)
    return run_of(
        folder,
        *("source@data.sources.more=pairs", f"data.sources.more.path={more}"),
        *("loss=cde", "teacher@teachers.surrogate=online", f"teachers.surrogate.model={exported}"),
        *("training.epochs=1", "backbone.dropout=0.0", "optim.eps=1e-3"),
        name=name,
    )


def test_two_sources_and_any_number_of_ranks_give_the_same_batches_and_weights(folder, exported):
    total, expected, batches = train_tiny(of_two_sources(folder, exported, "ranks1"))
    files = sorted(path.name for path in (folder / "ranks1" / "neighbourhoods").iterdir())
    assert files == ["more.json", "more.npy", "pairs.json", "pairs.npy"]
    assert total == len(batches) == 5
    for world in (2, 4):
        ranks = run_ranks(train_tiny, world, of_two_sources(folder, exported, f"ranks{world}"))
        together = [[[text for rank in ranks for text in rank[2][step][0]]] for step in range(total)]
        assert together == batches
        for _, weights, _ in ranks:
            torch.testing.assert_close(weights, expected, atol=2e-5, rtol=1e-4)


def test_batches_are_those_of_the_clusters_and_the_log_says_how_pure(folder):
    trainer = tiny_trainer(run_of(folder, name="pure"))
    sampler = trainer.loader.sampler
    assert sampler.clusters["pairs"].size == 26
    plan, clusters = sampler.epoch(0), sampler.clusters["pairs"]
    pure = [len(set(clusters[plan[step].row].tolist())) for step in range(len(plan))]
    said = next(
        line for line in (folder / "pure" / "log.txt").read_text().splitlines() if "neighbourhoods of pairs" in line
    )
    assert f"a batch is of {np.mean(pure):.2f} on average" in said
    assert set(trainer.fingerprint) == {"the data", "the neighbourhoods of the data"}


def test_a_run_whose_clusters_were_swapped_is_not_resumed(folder):
    config = run_of(folder, name="swapped")
    train_tiny(config, stop_after=1)
    other = folder / "other"
    KMeans(rows_per_cluster=4, seed=5).clusters_of(
        tiny_trainer(run_of(folder, name="source")).loader.sampler.mixture,
        batch_size=8,
        encoder=build_encoder(config),
        run_dir=other,
    )
    for path in (other / "neighbourhoods").iterdir():
        path.replace(folder / "swapped" / "neighbourhoods" / path.name)
    with pytest.raises(TrainingError, match=r"the neighbourhoods of the data is not what this run was started with"):
        train_tiny(config)
    with pytest.raises(ConfigError, match=r"data\.neighbourhoods\.seed: 0 then, 5 now"):
        tiny_trainer(run_of(folder, "data.neighbourhoods.seed=5", name="swapped"))


def test_another_model_may_say_what_is_alike(folder, exported):
    config = run_of(folder, f"data.neighbourhoods.model={exported}", name="by_other")
    clusters = tiny_trainer(config).loader.sampler.clusters["pairs"]
    manifest = json.loads((folder / "by_other" / "neighbourhoods" / "pairs.json").read_text())
    assert manifest["model"] == str(exported)
    assert manifest["identity"]["projection"]
    assert not np.array_equal(clusters, tiny_trainer(run_of(folder, name="by_itself")).loader.sampler.clusters["pairs"])


def test_an_answer_of_two_rows_is_masked_where_they_meet_and_filters_go_with_it(folder, exported):
    """8 rows are one batch, and two of them have one answer. Filters by a surrogate, a guide, and the model itself."""
    rows = [{"query": f"where is {n}", "positive": "a red bird" if n < 2 else f"stone {n}"} for n in range(8)]
    path = folder / "alike.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cde = ("loss=cde", "teacher@teachers.surrogate=online", f"teachers.surrogate.model={exported}")
    gist = ("loss=gist", "teacher@teachers.guide=online", f"teachers.guide.model={exported}")
    near = "loss.modifiers={near: {_target_: embedtrain.losses.modifiers.margin.FalseNegativeFilter, absolute: 0.0}}"
    for name, settings in {"plain": (), "cde": cde, "gist": gist, "near": (near,)}.items():
        config = run_of(folder, f"data.path={path}", *settings, name=name)
        done, weights, _ = train_tiny(config)
        assert done == 2
        assert torch.isfinite(weights).all()
        facts = json.loads((folder / name / "negatives.json").read_text())
        assert facts["ignored"] == 2 / 8  # of the two rows each leaves out the other's copy
        last = json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["train/ignored_per_query"] == 2 / 8
        assert (last.get("train/filtered_per_query", 0) > 0) == (name != "plain")


def start_command(settings: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from embedtrain.cli import train; sys.exit(train())", *settings],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_command_goes_on_with_its_clusters_to_the_same_weights(folder):
    settings = (
        *(ON, "data.neighbourhoods.rows_per_cluster=4", "training.epochs=4", "training.save_every=2"),
        *("evaluation.before=false", "evaluation.after=false", "training.keep_checkpoints=0", "backbone.dropout=0.2"),
    )
    train_tiny(tiny_config(folder, *settings, name="never_killed"))
    command = tiny_settings(folder, *settings, name="killed")
    checkpoints = folder / "killed" / "checkpoints"

    killed = start_command(command, folder)
    while not (checkpoints / "step_00000002").exists():
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.002)
    killed.kill()
    killed.communicate(timeout=100)
    assert not (checkpoints / "step_00000012").exists(), "it was stopped too late to prove anything"

    again = start_command(command, folder)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert "resumed from" in said
    assert "clusters, found in" not in said
    expected, weights = (
        load_file(run / "checkpoints" / "step_00000012" / "model.safetensors")
        for run in (folder / "never_killed", folder / "killed")
    )
    assert expected.keys() == weights.keys()
    assert all(torch.equal(expected[key], weights[key]) for key in expected)


# --------------------------------------------------------------------------------------------------------- the config


def test_check_says_what_will_be_clustered_and_embeds_nothing(folder, monkeypatch):
    monkeypatch.setattr(KMeans, "clusters_of", None)
    plan = make_plan(run_of(folder, name="planned"), world=1)
    line = next(line for line in plan.lines() if line.startswith("neighbourhoods"))
    assert line == (
        "neighbourhoods     of queries and positives, embedded by the encoder at the start; 4 rows per cluster, clusters: pairs 7"
    )
    assert make_plan(tiny_config(folder, name="planned"), world=1).neighbourhoods is None


def test_the_config_says_what_does_not_go_together(folder):
    composed = compose_config(
        tiny_settings(folder, ON, "data.batching=blended", "data.sources.pairs.texts_per_label=2")
    )
    with pytest.raises(ConfigError) as raised:
        validate(composed.config, composed.problems)
    for text in (
        "data.neighbourhoods: with data.batching=blended",
        "texts_per_label=2: with data.neighbourhoods the model",
    ):
        assert text in str(raised.value)


def test_the_config_warns_of_false_negatives_and_of_losses_that_read_none(folder):
    def warnings(*overrides: str) -> str:
        composed = compose_config(tiny_settings(folder, ON, *overrides))
        return "\n".join(
            warning for warning in validate(composed.config, composed.problems) if "data.neighb" in warning
        )

    assert "documents of others may well answer a query" in warnings()
    assert "nothing contrasts a query with the documents of its batch" in warnings("loss.negatives=hard_only")
    assert warnings("loss=unime") == ""


def test_an_unknown_setting_of_it_is_refused(folder):
    composed = compose_config(tiny_settings(folder, ON, "data.neighbourhoods.cluster_size=4"))
    with pytest.raises(ConfigError, match=r"data\.neighbourhoods\.cluster_size: KMeans has no key 'cluster_size'"):
        validate(composed.config, composed.problems)


def test_the_option_builds():
    assert isinstance(build(compose_config([ON]).config["data"]["neighbourhoods"]), KMeans)
