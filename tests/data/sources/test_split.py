"""A table as several sources, one for each value of a column."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedtrain.assemble import build_sources
from embedtrain.data.collate import collate
from embedtrain.data.loader import StepLoader
from embedtrain.data.mined import MinedNegatives, MinedRows, write_mined
from embedtrain.data.mixture import Mixture
from embedtrain.data.prompts import Prompts
from embedtrain.data.sampling import Sampler
from embedtrain.data.sources import Csv, HuggingFaceDataset, Parquet
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample, table_of, text_id
from tests.data.helpers import minilm

TASKS = ["nq", "fever", "nq", "sts", "fever", "nq"]
ROWS = [{"query": f"q{n}", "positive": f"p{n}", "task": task} for n, task in enumerate(TASKS)]
KINDS = ("csv", "parquet", "parquet folder", "saved dataset")


def table(kind: str, folder: Path, rows=ROWS, **given: Any) -> Any:
    if kind == "csv":
        path = folder / "rows.csv"
        keys = list(rows[0])
        path.write_text("\n".join([",".join(keys), *(",".join(str(r[k] or "") for k in keys) for r in rows)]) + "\n")
        return Csv(path=str(path), **given)
    if kind.startswith("parquet"):
        (folder / "parts").mkdir()
        cuts = [rows] if kind == "parquet" else [rows[:2], rows[2:]]
        for number, some in enumerate(cuts):
            pq.write_table(pa.Table.from_pylist(some), folder / f"parts/{number}.parquet")
        return Parquet(path=str(folder / "parts"), **given)
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return HuggingFaceDataset(path=str(folder / "saved"), **given)


def queries(source) -> list[str]:
    return [example.query for example in source]


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_the_column_is_a_source_with_its_rows_in_order(kind, tmp_path):
    whole = table(kind, tmp_path, split_by="task")
    parts = whole.as_sources("medi")
    assert {name: queries(part) for name, part in parts.items()} == {
        "medi/nq": ["q0", "q2", "q5"],
        "medi/fever": ["q1", "q4"],
        "medi/sts": ["q3"],
    }
    assert parts["medi/nq"][2] == whole[5]
    assert [part.where.endswith("task=nq") for part in parts.values()] == [True, False, False]
    sent = pickle.loads(pickle.dumps(parts))
    assert queries(sent["medi/fever"]) == ["q1", "q4"]
    assert sent["medi/fever"].table is sent["medi/nq"].table  # opened once in a worker


def test_a_table_that_is_not_split_is_one_source(tmp_path):
    whole = table("csv", tmp_path)
    assert whole.as_sources("medi") == {"medi": whole}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_take_the_settings_of_the_table_and_their_own_in_their_place(kind, tmp_path):
    given: dict[str, Any] = {"weight": 12.0, "instruction": "Find it.", "num_negatives": 2, "max_query_length": 9}
    parts = table(
        kind,
        tmp_path,
        split_by="task",
        parts={"fever": {"weight": 5.0, "instruction": "Check it.", "batch_size": 2}, "sts": None},
        **given,
    ).as_sources("medi")
    assert list(parts) == ["medi/nq", "medi/fever"]
    nq, fever = parts.values()
    assert (nq.weight, fever.weight) == (12.0 * 3 / 6, 5.0)
    assert (nq[0].instruction, fever[0].instruction) == ("Find it.", "Check it.")
    assert (nq.batch_size, fever.batch_size, fever.num_negatives, fever.max_lengths["query"]) == (None, 2, 2, 9)


def test_rows_are_limited_and_held_out_before_they_are_split(tmp_path):
    rows = [{"query": f"q{n % 20}", "positive": f"p{n}", "task": "ab"[n % 2 == 0]} for n in range(40)]
    given = {"limit": 30, "held_out": {"share": 0.3, "part": "train"}}
    whole = table("csv", tmp_path, rows, **given)
    parts = table("csv", tmp_path, rows, split_by="task", **given).as_sources("t")
    assert sorted(query for part in parts.values() for query in queries(part)) == sorted(queries(whole))
    assert 0 < len(whole) < 30


def test_batches_are_of_one_task_and_a_run_knows_the_parts_by_their_names(tmp_path):
    rows = [{"query": f"q{n}", "positive": f"p{n}", "task": ["x", "y"][n % 3 == 0]} for n in range(24)]
    parts = table("parquet", tmp_path, rows, split_by="task").as_sources("medi")
    tokenizer = TextTokenizer(
        tokenizer=minilm(),
        prompts=Prompts(sources={"medi": {"query": "task: "}}),
        max_query_length=16,
        max_document_length=16,
    )
    loader = StepLoader(
        sampler=Sampler(Mixture(sources=parts), seed=0, global_batch_size=4), tokenizer=tokenizer, num_workers=1
    )
    assert loader.steps_per_epoch == 6
    for (batch,) in loader.steps(0, 6):
        assert set(batch.sources) in ({"medi/x"}, {"medi/y"})
        assert batch.relation.sources.unique().tolist() == [text_id("medi")]  # the loss of the table is theirs
        assert minilm().decode(batch.queries.ids[:4]).startswith("[CLS] task :")
    assert Mixture(sources=parts).fingerprint != Mixture(sources=dict(reversed(parts.items()))).fingerprint


def test_prompts_and_losses_are_chosen_by_the_name_of_the_table():
    def read(**prompts: Any) -> Any:
        tokenizer = TextTokenizer(
            tokenizer=minilm(), prompts=Prompts(**prompts), max_query_length=8, max_document_length=8
        )
        return collate([TrainingExample(query="q", positives=("p",), source="medi/nq")], tokenizer)

    assert table_of("medi/a/b") == "medi"
    assert read().relation.sources.tolist() == [text_id("medi")]
    with pytest.raises(ConfigError, match=r"prompts\.sources\.medi\.query is 'x {instruction}', but medi/nq brings no"):
        read(sources={"medi": {"query": "x {instruction}"}})


def test_sources_of_a_config_are_the_parts(tmp_path):
    table("csv", tmp_path)
    node = {"_target_": "embedtrain.data.sources.Csv", "path": str(tmp_path / "rows.csv"), "split_by": "task"}
    found = build_sources({"data": {"sources": {"medi": node, "none": None, "all": {**node, "split_by": None}}}})
    assert list(found) == ["medi/nq", "medi/fever", "medi/sts", "all"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_value_is_named(kind, tmp_path):
    rows = [*ROWS[:4], {**ROWS[4], "task": None}, ROWS[5]]
    place = {"csv": r"rows\.csv:6", "parquet": "parts: row 5", "parquet folder": "parts: row 5"}.get(kind, "row 5")
    with pytest.raises(DataError, match=f"{place}: task is empty, so the row belongs to no part"):
        table(kind, tmp_path, rows, split_by="task").as_sources("medi")


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(kind, tmp_path):
    with pytest.raises(DataError, match=r"no column 'tsk' to split by. The columns are 'query', 'positive', 'task'"):
        table(kind, tmp_path, split_by="tsk").as_sources("medi")


def test_what_cannot_be_split_is_refused(tmp_path):
    many = [{"query": f"q{n}", "positive": "p", "task": f"q{n}"} for n in range(1001)]
    with pytest.raises(DataError, match=r"'task' has more than 1,000 values, and each would be a source"):
        table("csv", tmp_path, many, split_by="task").as_sources("t")
    with pytest.raises(DataError, match=r"parts: task holds float '0\.5"):
        table("parquet", tmp_path, [{**row, "task": 0.5} for row in ROWS], split_by="task").as_sources("t")
    with pytest.raises(ConfigError, match=r"parts: nq, of a table that is not split"):
        table("csv", tmp_path, parts={"nq": None})
    with pytest.raises(
        ConfigError, match=r"parts\.nq: no key held_out, wait\. Expected some of weight, instruction, limit"
    ):
        table("csv", tmp_path, split_by="task", parts={"nq": {"wait": 1, "held_out": None}})
    with pytest.raises(
        ConfigError, match=r"data\.sources\.medi\.parts: msmarco is no value of 'task' in .*: nq, fever, sts"
    ):
        table("csv", tmp_path, split_by="task", parts={"msmarco": None}).as_sources("medi")


def test_whole_numbers_are_values_too(tmp_path):
    rows = [{**row, "task": len(row["task"])} for row in ROWS]
    assert list(table("parquet", tmp_path, rows, split_by="task").as_sources("t")) == ["t/2", "t/5", "t/3"]


def test_mined_negatives_of_a_part_lie_in_files_of_its_name(tmp_path):

    rows = MinedRows(texts=["a text"], negatives=np.array([[0], [-1]]))
    write_mined(tmp_path / "v", {"medi/a b": rows}, {"keep_own": False})
    mined = MinedNegatives(tmp_path / "v")
    assert mined.counts("medi/a b").tolist() == [1, 0]
    assert mined.text("medi/a b", 0) == "a text"
    assert json.loads((tmp_path / "v/manifest.json").read_text())["sources"] == ["medi/a b"]
    assert (tmp_path / "v/medi%2Fa b.texts.arrow").is_file()
