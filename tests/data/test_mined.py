"""Versions of mined negatives on disk, and the batches that are made of them."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from embedtrain.data.mined import NOTHING, MinedNegatives, MinedRows, write_mined
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample, text_id

ROW = TrainingExample(query="q", positives=("p", "r"), negatives=("own",), source="s")


def write(folder: Path, *, keep_own: bool = False, scores: bool = False) -> MinedNegatives:
    negatives = np.array([[2, 0, NOTHING], [NOTHING, NOTHING, NOTHING], [1, 2, 0]])
    given = np.array([[0.5, 0.25, np.nan], [np.nan] * 3, [3.0, 2.0, 1.0]], dtype=np.float32)
    rows = MinedRows(["a", "b\n", "ç"], negatives)
    if scores:
        rows = MinedRows(rows.texts, negatives, given, np.arange(5, dtype=np.float32), np.array([0, 2, 3, 5]))
    write_mined(folder / "step_00000000", {"s": rows}, {"keep_own": keep_own, "rows": {"s": 3}})
    return MinedNegatives(folder / "step_00000000")


def test_rows_get_their_negatives_in_place_of_their_own(tmp_path: Path) -> None:
    mined = write(tmp_path)
    assert mined.counts("s").tolist() == [2, 0, 3]
    assert [mined.extend(ROW, "s", row).negatives for row in range(3)] == [("ç", "a"), (), ("b\n", "ç", "a")]
    assert mined.extend(ROW, "s", 0).scores is None
    assert mined.text_ids("s").tolist() == [text_id(text) for text in ("a", "b\n", "ç")]
    assert "s" in mined
    assert "t" not in mined


def test_or_behind_their_own(tmp_path: Path) -> None:
    mined = write(tmp_path, keep_own=True)
    assert mined.extend(ROW, "s", 2).negatives == ("own", "b\n", "ç", "a")


def test_scores_of_a_rescorer_stand_with_positives_first_and_nan_for_what_it_did_not_score(tmp_path: Path) -> None:
    mined = write(tmp_path, keep_own=True, scores=True)
    scores = mined.extend(ROW, "s", 2).scores
    assert scores is not None
    assert scores[:2] == (3.0, 4.0)
    assert math.isnan(scores[2])
    assert scores[3:] == (3.0, 2.0, 1.0)


def test_scores_that_rows_bring_stay_with_their_documents(tmp_path: Path) -> None:
    from dataclasses import replace

    scores = write(tmp_path).extend(replace(ROW, scores=(1.0, 2.0, 9.0)), "s", 0).scores
    assert scores is not None
    assert scores[:2] == (1.0, 2.0)  # and not that of the own negative, which is gone
    assert all(map(math.isnan, scores[2:]))
    assert len(scores) == 4


def test_a_window_reads_a_part_of_each_list(tmp_path: Path) -> None:
    mined = write(tmp_path, scores=True).window({"s": np.array([1, 0, 1])}, 2)
    mined = pickle.loads(pickle.dumps(mined))  # as it travels to workers
    assert mined.counts("s").tolist() == [1, 0, 2]
    assert mined.extend(ROW, "s", 0).negatives == ("a",)
    assert mined.extend(ROW, "s", 2).negatives == ("ç", "a")
    assert mined.extend(ROW, "s", 2).scores == (3.0, 4.0, 2.0, 1.0)


def test_a_version_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    mined = write(tmp_path)
    (mined.path / "s.negatives.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="cut short"):
        MinedNegatives(mined.path).counts("s")
    (mined.path / "manifest.json").unlink()
    with pytest.raises(DataError, match="no whole version"):
        MinedNegatives(mined.path)


def test_a_version_replaces_an_older_one_of_its_name(tmp_path: Path) -> None:
    write(tmp_path)
    assert write(tmp_path, keep_own=True).keep_own
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000000"]
