"""Mining in a run beside what else a run may have: workers, cached chunks, micro-batches, own negatives, rescorers, stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embedtrain.cli import main
from embedtrain.data.mined import MinedNegatives
from embedtrain.data.sources import JsonLines
from embedtrain.errors import ConfigError
from embedtrain.training.mining_process import environment
from embedtrain.training.refresh import Periodic
from embedtrain.types import TokenBatch, TrainingExample, text_id
from tests.helpers.models import minilm_dir
from tests.helpers.runs import WORDS, tiny_config, tiny_settings, tiny_trainer, train_tiny

MINE = (
    "miner=top_k",
    "miner.num_negatives=2",
    "miner.depth=12",
    "miner.near_duplicates=null",
    "optim.learning_rate=3e-2",
)
EVERY_2 = (*MINE, "refresh@training.refresh=periodic", "training.refresh.every=2", "training.max_steps=4")


def config(folder: Path, *settings: str, name: str = "run") -> dict[str, Any]:
    return tiny_config(folder, *settings, f"miner.store={folder / 'embeddings'}", name=name)


def first_batch(folder: Path, *settings: str) -> tuple[TokenBatch, MinedNegatives, list[TrainingExample]]:
    """Of a run that mines: its first batch, what was mined, and the rows of its file."""
    trainer = tiny_trainer(config(folder, *MINE, *settings))
    assert trainer.negatives is not None
    trainer.negatives.enter(trainer, 0)
    (batch,) = next(iter(trainer.loader.steps(0, 1)))
    mined = MinedNegatives(folder / "run" / "negatives" / "step_00000000")
    return batch, mined, list(JsonLines(path=str(folder / "pairs.jsonl")))


def brought(batch: TokenBatch) -> dict[int, list[int]]:
    """Hard negatives of each query of a batch, by the row's number."""
    relation = batch.relation
    found: dict[int, list[int]] = {number: [] for number in batch.numbers}
    for owner, document, positive in zip(relation.owner, relation.document_ids, relation.is_positive, strict=True):
        if not positive:
            found[batch.numbers[int(owner)]].append(int(document))
    return found


def test_workers_and_cached_chunks_change_nothing(tmp_path: Path) -> None:
    _, weights, seen = train_tiny(config(tmp_path, *EVERY_2, name="plain"))
    for number, setting in enumerate(("data.num_workers=2", "training.cached_share=1.0")):
        _, others, same = train_tiny(config(tmp_path, *EVERY_2, setting, name=f"other{number}"))
        assert same == seen
        assert torch.equal(others, weights)


def test_micro_batches_are_parts_of_the_same_batches(tmp_path: Path) -> None:
    settings = (*EVERY_2, "training.max_steps=2")  # before the weights are others
    _, _, seen = train_tiny(config(tmp_path, *settings, name="whole"))
    _, _, parts = train_tiny(config(tmp_path, *settings, "training.accumulation_steps=2", name="parts"))
    assert [[first + second] for first, second in parts] == seen


def test_fewer_are_brought_where_the_data_says_so(tmp_path: Path) -> None:
    batch, mined, rows = first_batch(tmp_path, "data.num_negatives=1")
    for number, own in brought(batch).items():
        assert len(own) == 1
        assert own[0] in [text_id(text) for text in mined.extend(rows[number], "pairs", number).negatives]


def test_own_negatives_are_kept_in_front_and_not_brought_twice(tmp_path: Path) -> None:
    batch, mined, rows = first_batch(tmp_path, "miner.own_negatives=keep")
    for number, documents in brought(batch).items():
        assert documents[0] == text_id(rows[number].negatives[0])
        assert len(documents) == len(set(documents)) == 1 + mined.counts("pairs")[number]


def test_scores_of_a_rescorer_reach_the_loss(tmp_path: Path) -> None:
    rescored = (
        "rescorer@miner.rescorer=bi_encoder",
        f"miner.rescorer.model={minilm_dir()}",
        f"miner.rescorer.store={tmp_path / 'scores'}",
    )
    batch, mined, rows = first_batch(tmp_path, *rescored)
    assert batch.relation.scores is not None
    expected = [score for number in batch.numbers for score in mined.extend(rows[number], "pairs", number).scores or ()]
    assert batch.relation.scores.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 10
    settings = [
        *MINE,
        *rescored,
        "loss=score_kl",
        "loss.teacher_temperature=0.05",  # its scores are cosines
        f"miner.store={tmp_path / 'embeddings'}",
        "training.max_steps=2",
    ]
    assert main(["check", *tiny_settings(tmp_path, *settings, name="distilled")]) == 0
    done, _, _ = train_tiny(config(tmp_path, *settings, name="distilled"))
    assert done == 2


def test_a_stage_mines_by_the_weights_of_the_stage_before(tmp_path: Path) -> None:
    """Also beside the training: the other process builds its encoder of that stage's beginning."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{a} {b} {c} {a}\n" for a, b, c in zip(WORDS, WORDS[3:], WORDS[7:], strict=False)))
    settings = [
        "objective@stages.adapt.objective=masked_lm",
        "source@stages.adapt.data.sources.texts=texts",
        f"stages.adapt.data.sources.texts.path={texts}",
        "stages.adapt.data.sources.pairs=null",
        "stages.adapt.training.max_steps=2",
        "stages.adapt.training.global_batch_size=6",
        "miner@stages.contrast.miner=top_k",
        "stages.contrast.miner.num_negatives=2",
        f"stages.contrast.miner.store={tmp_path / 'embeddings'}",
        "refresh@stages.contrast.training.refresh=periodic",
        "stages.contrast.training.refresh.every=2",
        "stages.contrast.training.max_steps=4",
        "evaluation.before=false",
        "evaluation.after=false",
        "export.num_probes=2",
    ]
    assert main(["train", *tiny_settings(tmp_path, *settings)]) == 0
    stages = tmp_path / "run" / "stages"
    assert not (stages / "adapt" / "negatives").exists()
    assert sorted(path.name for path in (stages / "contrast" / "negatives").iterdir()) == [
        "step_00000000",
        "step_00000002",
    ]


def test_cosines_of_token_vectors_are_not_followed(tmp_path: Path) -> None:
    triggered = ("refresh@training.refresh=triggered", "training.refresh.num_negatives=2")
    settings = ("miner=bm25", "pooling=multi_vector", "loss=colbert", *triggered)
    with pytest.raises(ConfigError, match=r"MultiVector.* makes no single vector"):
        tiny_trainer(config(tmp_path, *settings))


@pytest.mark.parametrize(
    ("device", "seen", "expected"),
    [
        ("cpu", "4,5", ""),
        ("cuda", None, "0"),
        ("cuda:3", None, "3"),
        ("cuda:1", "4,5", "5"),
        ("cuda:0", "GPU-aa,GPU-bb", "GPU-aa"),
    ],
)
def test_the_other_process_sees_one_device_as_this_run_counts_them(
    device: str, seen: str | None, expected: str
) -> None:
    own = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x", "HOME": "/home"}
    if seen is not None:
        own["CUDA_VISIBLE_DEVICES"] = seen
    given = environment(Periodic(every=1, device=device, threads=3), own)
    assert given == {"HOME": "/home", "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": expected}


def test_a_device_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected cpu, cuda"):
        Periodic(every=1, device="gpu")
