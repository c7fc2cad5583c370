"""`embedtrain mine` as it is typed: from a file of pairs to files of rows, a report and nothing half written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedtrain import cli, log
from embedtrain.commands.mine import FORMATS
from embedtrain.config.build import build
from embedtrain.config.compose import ROOT, compose_config
from embedtrain.config.validate import validate_mining
from embedtrain.data.sources import JsonLines, PairsFile
from embedtrain.data.writers import WRITERS
from embedtrain.mining.command import run_mining
from embedtrain.mining.miner import Miner
from embedtrain.types import TrainingExample
from tests.helpers.ranks import run_ranks
from tests.mining.rescorers.folders import WORDS, embedding_model, reranker

PAIRS = [
    {"query": f"a {a} {b}", "positives": [f"the {a} {b} there", f"one {b} that is {a}"], "negatives": [f"{b} {i}"]}
    for i, (a, b) in enumerate(zip(WORDS[:12], WORDS[2:], strict=False))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return embedding_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A folder of the user's, with a file of pairs."""
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", PAIRS)
    yield
    log.stop()


@pytest.fixture(scope="module")
def before(model, tmp_path_factory) -> Path:
    """What was mined here yesterday: mined/, and the store in runs/."""
    folder = tmp_path_factory.mktemp("yesterday")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("pairs.jsonl", PAIRS)
        assert cli.main(words(model)) == 0
    log.stop()
    return folder


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def words(model: str, *more: str, output: str = "mined") -> list[str]:
    data = ["data=pairs", "data.path=pairs.jsonl", "miner.num_negatives=3", "miner=top_k"]
    return ["mine", *data, f"model={model}", f"output={output}", *more]


def rows_of(path: str) -> list[TrainingExample]:
    return list(JsonLines(path=path))


def refused(said: pytest.CaptureFixture[str], code: int, *typed: str) -> str:
    """What the command says. It leaves no folder behind."""
    before = sorted(path.name for path in Path().iterdir() if path.name != "runs")
    assert cli.main(list(typed)) == code
    assert sorted(path.name for path in Path().iterdir() if path.name != "runs") == before
    return said.readouterr().err


def test_rows_report_and_config_are_written_and_said(model, capsys):
    assert cli.main(words(model)) == 0
    printed = capsys.readouterr().out
    assert "pairs: 12 rows -> mined/pairs.jsonl\n" in printed
    assert "  36 negatives for 12 queries, 3.0 each\n" in printed
    assert "report: mined/report.html\n" in printed
    assert sorted(path.name for path in Path("mined").iterdir()) == [
        "config.yaml", "pairs.jsonl", "report.html", "report.json",
    ]  # fmt: skip
    assert not Path("mined.partial").exists()
    given = rows_of("pairs.jsonl")
    for row, after in zip(given, rows_of("mined/pairs.jsonl"), strict=True):
        assert (after.query, after.positives) == (row.query, row.positives)
        assert len(after.negatives) == 3
        assert not set(after.negatives) & set(row.positives)
        assert list(after.scores[2:]) == sorted(after.scores[2:], reverse=True)
    line = json.loads(Path("mined/pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["mined"]["by"] == model
    assert line["mined"]["reasons"] == ["top"] * 3
    report = json.loads(Path("mined/report.json").read_text(encoding="utf-8"))
    assert report["sources"]["pairs"]["facts"]["search"]["kind"] == "exact"


@pytest.mark.parametrize("form", list(WRITERS))
def test_each_format_gives_the_same_rows_again(model, form, before, capsys):
    assert tuple(WRITERS) == FORMATS
    expected = rows_of(f"{before}/mined/pairs.jsonl")
    assert cli.main(words(model, f"format={form}", f"miner.store={before}/runs/embeddings", output="as")) == 0
    printed = capsys.readouterr().out
    path = {
        "triplet": "as/pairs.parquet",
        "n_tuple": "as/pairs.parquet",
        "labeled_list": "as/pairs.parquet",
        "tevatron": "as/pairs",
        "beir": "as/pairs",
    }.get(form, "as/pairs.jsonl")
    found = list(PairsFile(path=path))
    pairs = {(row.query, text) for row in expected for text in row.positives}
    hard = {(row.query, text) for row in expected for text in row.negatives}
    assert {(row.query, text) for row in found for text in row.positives} == pairs
    if form == "beir":  # judgements know no negatives: they lie beside them
        lines = Path("as/pairs/negatives.jsonl").read_text(encoding="utf-8").splitlines()
        assert sum(len(json.loads(line)["negatives"]) for line in lines) == len(hard)
    else:
        assert {(row.query, text) for row in found for text in row.negatives} == hard
    if form in ("canonical", "flag_embedding"):
        assert [row.scores for row in found] == [row.scores for row in expected]
    assert (f"{form} has no place for " in printed) == (form != "canonical")


def test_a_second_run_embeds_nothing_and_writes_the_same(model, before, capsys):
    assert cli.main(words(model, f"miner.store={before}/runs/embeddings")) == 0
    assert "0 texts embedded and 48 taken from the store" in capsys.readouterr().out
    assert Path("mined/pairs.jsonl").read_bytes() == (before / "mined/pairs.jsonl").read_bytes()


def test_a_folder_that_is_there_is_left_alone(model, capsys):
    Path("mined").mkdir()
    Path("mined/notes.txt").write_text("mine", encoding="utf-8")
    assert "output=mined: is there already. Choose another folder, or remove it." in refused(capsys, 2, *words(model))
    assert Path("mined/notes.txt").read_text(encoding="utf-8") == "mine"
    Path("mined/notes.txt").unlink()
    assert cli.main(words(model)) == 0  # an empty one will do


_KILLED = """
import os, signal, sys
from embedtrain import cli
from embedtrain.mining import vectors
vectors._TEXTS_AT_ONCE = 4
encode, done = vectors._encode_block, []
def encode_and_die(encoder, part, places, writer):
    encode(encoder, part, places, writer)
    writer.flush()
    done.append(part)
    if len(done) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
vectors._encode_block = encode_and_die
cli.main(sys.argv[1:])
"""


def test_a_kill_leaves_nothing_that_looks_whole_and_the_next_run_goes_on(model, before, capsys):
    killed = subprocess.run([sys.executable, "-c", _KILLED, *words(model)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not Path("mined").exists()
    Path("mined.partial/pairs.jsonl").write_text("half a row", encoding="utf-8")
    assert cli.main(words(model)) == 0
    # Three blocks of four queries and two of documents were in the store.
    assert "28 texts embedded and 20 taken from the store" in capsys.readouterr().out
    assert not Path("mined.partial").exists()
    expected = rows_of(f"{before}/mined/pairs.jsonl")
    assert [row.negatives for row in rows_of("mined/pairs.jsonl")] == [row.negatives for row in expected]


def test_a_miner_is_chosen_where_none_is_and_settings_alone_are_settings_of_it(model):
    typed = ["mine", "data=pairs", "data.path=pairs.jsonl", f"model={model}", "output=mined", "miner.depth=9"]
    assert cli.main(typed) == 0
    saved = yaml.safe_load(Path("mined/config.yaml").read_text(encoding="utf-8"))["miner"]
    assert saved["depth"] == 9
    assert saved["model"] == model
    assert saved["filters"]["percent_of_positive"]["share"] == 0.95


@pytest.mark.parametrize("option", sorted(path.stem for path in (ROOT / "configs" / "miner").glob("*.yaml")))
def test_every_miner_can_be_chosen_by_its_name(option, model, tmp_path):
    typed = [word for word in words(model)[1:] if not word.startswith(("miner=", "model=", "output="))]
    typed += [f"miner={option}", f"miner.model={model}"]
    if option == "rescored":
        typed += [f"miner.rescorer.model={reranker(tmp_path)}", "miner.rescorer.max_length=64"]
    composed = compose_config(typed)
    validate_mining(composed.config, composed.problems)
    miner = build(composed.config["miner"])
    assert isinstance(miner, Miner)
    if option != "bm25":
        assert miner.search.reads_vectors


def test_words_in_common_need_no_model():
    typed = [word for word in words("") if not word.startswith(("model=", "miner="))]
    assert cli.main([*typed, "miner=bm25"]) == 0
    line = json.loads(Path("mined/pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["mined"]["by"] == "bm25"
    assert Path("runs/embeddings").is_dir()
    assert not list(Path("runs/embeddings").iterdir()), "neither vectors nor an index stay"


def test_the_config_of_a_run_is_mined_again(model, before):
    """Its data and its encoder, with a miner: no model is named."""
    lengths = ["encoder.max_query_length=32", "encoder.max_document_length=32"]
    composed = compose_config(["data=pairs", "data.path=pairs.jsonl", f"backbone.name={model}", "run.name=r", *lengths])
    Path("runs/r").mkdir(parents=True)
    Path("runs/r/config.yaml").write_text(yaml.safe_dump(composed.config), encoding="utf-8")
    assert cli.main(["mine", "--from-run", "runs/r", "miner=top_k", "output=mined"]) == 0
    expected = rows_of(f"{before}/mined/pairs.jsonl")
    assert [row.negatives[:3] for row in rows_of("mined/pairs.jsonl")] == [row.negatives for row in expected]


def test_rows_keep_their_own_negatives_in_front(model):
    assert cli.main(words(model, "miner.own_negatives=keep")) == 0
    for row, after in zip(rows_of("pairs.jsonl"), rows_of("mined/pairs.jsonl"), strict=True):
        assert after.negatives[0] == row.negatives[0]
        assert len(set(after.negatives)) == len(after.negatives) >= 3


def mine_on_a_rank(typed: list[str], output: str) -> list[str]:
    return run_mining(compose_config(typed).config, output=Path(output), form="canonical")


def test_two_ranks_write_what_one_writes(model, before):
    typed = [word for word in words(model)[1:] if not word.startswith(("model=", "output="))]
    typed += [f"miner.model={model}", f"miner.store={before}/runs/embeddings"]
    said = run_ranks(mine_on_a_rank, 2, typed, "both")
    assert said[0][-1] == "report: both/report.html"
    assert said[1] == []
    assert Path("both/pairs.jsonl").read_bytes() == (before / "mined/pairs.jsonl").read_bytes()


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "corpus.jsonl is empty. Expected one row on each line."),
        (
            '{"id": "1", "text": "red cat"}\n{"id": "1", "text": "blue cat"}\n',
            "corpus.jsonl, line 2: the id '1' is that of another document in line 1.",
        ),
        ('{"text": "red"}\n{"text": " "}\n', "corpus.jsonl, line 2: the document is empty. Remove the line."),
        ('{"text": "red"}\n{"text": "bl', "corpus.jsonl, line 2, column 10: broken JSON"),
    ],
)
def test_a_corpus_that_cannot_be_is_named(model, lines, message, capsys):
    Path("corpus.jsonl").write_text(lines, encoding="utf-8")
    assert message in refused(capsys, 1, *words(model, "miner.corpus=corpus.jsonl"))


def test_a_corpus_without_the_positives_is_searched_and_said(model, capsys):
    write("corpus.jsonl", [{"text": f"{word} of old"} for word in WORDS])
    assert cli.main(words(model, "miner.corpus=corpus.jsonl")) == 0
    assert "warning: 100% of the documents that answer are not in the corpus" in capsys.readouterr().out
    assert all(text.endswith(" of old") for row in rows_of("mined/pairs.jsonl") for text in row.negatives)


def test_too_few_candidates_are_counted_and_nothing_fills_them(model, capsys):
    write("corpus.jsonl", [{"text": "red"}, {"text": "blue"}])
    assert cli.main(words(model, "miner.corpus=corpus.jsonl")) == 0
    assert "; 12 queries have fewer than 3" in capsys.readouterr().out
    assert {row.negatives for row in rows_of("mined/pairs.jsonl")} <= {("red", "blue"), ("blue", "red")}


def test_a_store_of_another_model_is_refused(model, tmp_path, capsys):
    assert cli.main(words(model, "miner.store=store")) == 0
    [store] = [path for path in Path("store").iterdir() if (path / "manifest.json").is_file()]
    other = embedding_model(tmp_path / "other", seed=9)
    capsys.readouterr()
    said = refused(capsys, 1, *words(other, f"miner.store={store}", output="again"))
    assert f"{store}: the vectors in this store are not those of this model (store / model): weights" in said


def test_a_store_cut_short_is_named_with_the_remedy(model, capsys):
    assert cli.main(words(model, "miner.store=store")) == 0
    shard = next(Path("store").glob("*/shard-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    capsys.readouterr()
    said = refused(capsys, 1, *words(model, "miner.store=store", output="again"))
    assert f"{shard}: cut short" in said
    assert "Delete this file and run the same command again: it writes what is missing." in said
    shard.unlink()
    assert cli.main(words(model, "miner.store=store", output="again")) == 0
    assert Path("again/pairs.jsonl").read_bytes() == Path("mined/pairs.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["format=json"], "format=json: expected one of canonical, flag_embedding"),
        (["output="], "output="),
        (["miner.depth=1"], "miner.depth=1: expected at least num_negatives=3"),
        (["miner.dept=1"], "miner.dept: Miner has no key 'dept'. Did you mean 'depth'?"),
        (["miner.draw=best"], "miner.draw: expected one of 'top', 'uniform', 'softmax', got 'best'"),
        (
            ["filter@miner.filters.x=minimum_positive", "miner.filters.x.lowest=0"],
            "miner.filters.x: MinimumPositive says which queries stay. Put it under miner.query_filters.",
        ),
        (
            ["filter@miner.query_filters.x=shifted"],
            "miner.query_filters.x: RankRange says which candidates stay. Put it under miner.filters.",
        ),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_read(model, more, message, capsys):
    assert message in refused(capsys, 2, *words(model, *more))


def test_a_model_that_is_not_there_is_named(capsys):
    assert "nowhere/model is no folder here" in refused(capsys, 2, *words("nowhere/model"))
