"""Teachers in whole runs, by the names of the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from embedtrain import cli
from tests.helpers.runs import WORDS, tiny_config, tiny_settings, tiny_trainer, train_tiny
from tests.teachers.folders import teacher_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher_folder(tmp_path_factory.mktemp("runs"))


def by_store(folder: str, tmp_path: Path) -> list[str]:
    return [
        "loss=in_batch_kl",
        "loss.teacher=big",
        "teacher@teachers.big=cached",
        f"teachers.big.store={tmp_path / 'store'}",
        "teachers.big.numbers=float32",
        f"teachers.big.filled_by.model={folder}",
    ]


def online(folder: str) -> list[str]:
    return ["loss=in_batch_kl", "loss.teacher=big", "teacher@teachers.big=online", f"teachers.big.model={folder}"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_store_teaches_what_its_model_teaches(folder, tmp_path, capsys):
    settings = tiny_settings(tmp_path, *by_store(folder, tmp_path))
    code, text = said(capsys, "check", *settings)
    assert code == 2
    assert "teachers.big.store:" in text
    assert "embedtrain teach" in text
    code, text = said(capsys, "teach", "teacher=big", *settings)
    assert (code, "78 texts encoded, 0 were there" in text) == (0, True), text
    code, text = said(capsys, "teach", "teacher=big", *settings)
    assert (code, "nothing left to encode, 78 were there" in text) == (0, True), text
    assert said(capsys, "check", *settings)[0] == 0

    short = ("training.epochs=1", "data.num_workers=1")
    done, stored, _ = train_tiny(tiny_config(tmp_path, *by_store(folder, tmp_path), *short))
    _, live, _ = train_tiny(tiny_config(tmp_path, *online(folder), *short, name="live"))
    assert done == 3
    start = tiny_trainer(tiny_config(tmp_path, *online(folder), *short, name="start"))
    moved = torch.cat([p.detach().flatten() for _, p in start.named]) - live
    assert moved.norm() > 0.1
    assert (stored - live).norm() < 0.01 * moved.norm()  # AdamW makes a step of rounding where a gradient is 0


def test_a_teacher_is_neither_trained_nor_saved(folder, tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, *online(folder)))
    own = sum(p.numel() for p in trainer.step.encoder.parameters())
    assert sum(p.numel() for _, p in trainer.named) == own
    trainer.save(0)
    saved = 0
    for path in (tmp_path / "run" / "checkpoints").rglob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            saved += sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert saved == own


def scored_pairs(path: Path, scale: float, *, missing: bool = False) -> str:
    rows = []
    for number, word in enumerate(WORDS):
        row = {"query": f"what is {word}", "positive": word, "negatives": [f"no {word}", f"not a {word}"]}
        if not (missing and number == 3):
            row["scores"] = [0.99 + scale, 0.99, 0.99 - scale]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.path={path}"


def test_scores_of_rows_are_looked_at_before_anything_runs(tmp_path, capsys):
    settings = tiny_settings(tmp_path, "loss=score_kl")
    path = tmp_path / "scored.jsonl"
    assert said(capsys, "check", *settings, scored_pairs(path, 1.0))[0] == 0
    code, text = said(capsys, "check", *settings, scored_pairs(path, 0.001))
    assert code == 2
    assert "hardly differ among a query's documents" in text
    code, text = said(capsys, "check", *settings, scored_pairs(path, 1.0, missing=True))
    assert code == 1
    assert "scored.jsonl:4" in text
    assert "this row has none" in text
    code, text = said(capsys, "check", *settings)  # the file without scores
    assert code == 1
    assert "this row has none" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=in_batch_kl"], "the loss reads the teacher teacher, but the run has none"),
        (
            [
                "loss=leaf",
                "encoder.projection_dim=16",
                "teacher@teachers.teacher=online",
                "teachers.teacher.model={folder}",
            ],
            "the student's embeddings have 16 dimensions and those of the teacher 'teacher' have 32",
        ),
        (
            ["teacher@teachers.big=online", "teachers.big.model={folder}", "teachers.big.lenght=3"],
            "teachers.big.lenght",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_check(folder, tmp_path, capsys, overrides, message):
    words = [word.format(folder=folder) for word in overrides]
    code, text = said(capsys, "check", *tiny_settings(tmp_path, *words))
    assert code == 2
    assert message in text


def test_teach_wants_a_teacher_that_keeps_a_store(folder, tmp_path, capsys):
    settings = tiny_settings(tmp_path, *online(folder))
    assert "teacher=big: it keeps no store" in said(capsys, "teach", "teacher=big", *settings)[1]
    assert "teacher=small: the config has big" in said(capsys, "teach", "teacher=small", *settings)[1]
    assert "teacher: required" in said(capsys, "teach", *settings)[1]
