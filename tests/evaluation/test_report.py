import json
import re
import xml.dom.minidom
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from embedtrain.errors import DataError
from embedtrain.evaluation.report import write_report
from embedtrain.evaluation.report.plots import change_plot, interval_bar, line_plot, nice_ticks, short_number
from embedtrain.evaluation.report.words import MINUS
from embedtrain.evaluation.result import EvaluationResult, QueryExample, write_results

CONFIG = """
run: {name: <my> run, seed: 0}
backbone: {_target_: a.TransformerBackbone, name: tiny-bert, lora: null}
loss: {_target_: a.InfoNCE, temperature: 0.05, terms: [q2d]}
training: {global_batch_size: 64}
evaluation: {resamples: 200}
"""


def result(values, metric="ndcg@10"):
    return EvaluationResult(
        name="mine",
        metrics={metric: sum(values) / len(values)},
        primary=metric,
        per_query={metric: {f"q{i}": float(v) for i, v in enumerate(values)}},
        examples={
            f"q{i}": QueryExample(
                query=f"query <{i}>", relevant=f"answer {i}", found=f"found {i}", rank=None if v == 0 else 1
            )
            for i, v in enumerate(values)
        },
        details={"num_queries": len(values), "num_unjudged_queries": 4},
    )


@pytest.fixture
def run(tmp_path):
    """A whole run directory; tests take files away or change them."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "environment.json").write_text(
        json.dumps(
            {"command": "train.py recipe='a b'", "started": "today", "world_size": 2, "git": {"commit": "c0ffee" * 6}}
        )
    )
    (folder / "negatives.json").write_text(
        json.dumps({"queries": 64, "documents": 64, "truncated": 3, "hard_negatives": 1, "in_batch_negatives": 62})
    )
    lines = [
        {
            "step": step,
            "time": 1000.0 + step,
            "train/loss": 2.0 / step,
            "train/positive_similarity": 0.5,
            "train/peak_memory_gb": 3,
        }
        for step in range(1, 31)
    ]
    lines += [{"step": 20, "time": 1020.0, "eval/mine/ndcg@10": 0.4}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 31, "tra')
    write_results(folder / "evaluation" / "before.json", {"mine": result([0.0] * 30 + [1.0, 0.5])})
    write_results(folder / "evaluation" / "after.json", {"mine": result([0.5] * 30 + [0.0, 0.5])})
    return folder


class Reader(HTMLParser):
    """The words of the page, and a check that its tags match."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line", "circle", "rect", "polyline", "polygon"):
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        assert tag not in ("script", "link", "iframe", "object", "img")

    def handle_endtag(self, tag):
        if tag in ("line", "circle", "rect", "polyline", "polygon"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    assert not reader.references
    return re.sub(r"\s+", " ", " ".join(reader.words))


def report_of(run):
    """The words of the report of a run directory."""
    page = run / "report.html"
    write_report(page, run)
    return read(page)


def test_page_stands_alone_and_is_well_formed(run):
    report_of(run)
    page = (run / "report.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|@import|url\(", page)


def test_both_models_of_a_bridge_are_named(run):
    halves = "{_target_: a.BridgeBackbone, encoder: {_target_: a.T, name: tiny-xlmr}, llm: {_target_: a.T, name: tiny-llama}}"
    config = CONFIG.replace("{_target_: a.TransformerBackbone, name: tiny-bert, lora: null}", halves)
    (run / "config.yaml").write_text(config)
    assert "tiny-xlmr + tiny-llama" in report_of(run)


def test_verdict_comes_first_and_says_how_sure_it_is(run):
    words = report_of(run)
    assert "ndcg@10 on mine rose from 4.69 to 48.44" in words
    assert "leaves zero out" in words
    assert words.index("rose from") < words.index("Before and after") < words.index("Training, step by step")


def test_change_that_may_be_chance_is_called_so(run):
    write_results(run / "evaluation" / "after.json", {"mine": result([0.0] * 30 + [0.9, 0.7])})
    assert "holds zero: it may be chance" in report_of(run)


def test_model_that_got_worse_is_said_to_be_worse(run):
    write_results(run / "evaluation" / "after.json", {"mine": result([0.0] * 32)})
    write_results(run / "evaluation" / "before.json", {"mine": result([0.5] * 32)})
    words = report_of(run)
    assert "fell from 50.00 to 0.00" in words
    assert f"{MINUS}50.00" in words


def test_queries_are_shown_with_their_texts_escaped(run):
    words = report_of(run)
    assert "Of 32 queries 30 got better by ndcg@10, 1 got worse, 1 stayed" in words
    improved, harmed = words.index("Most improved"), words.index("Most harmed")
    assert words.index("query <0>") in range(improved, harmed)  # escaped in the page, or the reader would see a tag
    assert words.index("query <30>") > harmed
    assert words.count("rank none → 1") == 10  # ten are shown
    assert words.count("rank 1 → none") == 1


def test_facts_command_and_settings_are_there(run):
    words = report_of(run)
    for fact in (
        "<my> run",
        "tiny-bert",
        "InfoNCE, temperature 0.05, terms [q2d]",
        "64 queries per step",
        "c0ffeec0ffee",
        "3.0 GB",
    ):
        assert fact in words, fact
    assert "train.py recipe='a b'" in words
    assert f"embedtrain train --from-run {run}" in words
    assert "resamples: 200" in words  # config.yaml as it is
    assert "4 queries of the folder have no relevant document" in words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluation/before.json", "Measured only after training."),
        ("evaluation/after.json", "Measured only before training."),
        ("metrics.jsonl", "No curves"),
        ("environment.json", "command, versions and hardware are unknown"),
        ("config.yaml", "the settings of the run are unknown"),
        ("negatives.json", "what a query was contrasted with is unknown"),
    ],
)
def test_missing_file_is_said_to_be_missing(run, name, words):
    (run / name).unlink()
    assert words in report_of(run)


def test_run_without_an_evaluation_says_so(run):
    for name in ("before", "after"):
        (run / "evaluation" / f"{name}.json").unlink()
    assert "Not evaluated." in report_of(run)


def test_empty_directory_still_has_a_page(tmp_path):
    words = report_of(tmp_path)
    assert "Not evaluated." in words
    assert "metrics.jsonl is not there" in words


def test_values_that_were_no_numbers_are_counted(run):
    with (run / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate([1.0, None, 0.5, None]):
            file.write(json.dumps({"step": step, "time": step, "train/loss": loss}) + "\n")
    assert "train/loss was not a finite number at 2 of the logged steps" in report_of(run).replace("  ", " ")


def test_other_queries_before_and_after_are_told(run):
    write_results(run / "evaluation" / "after.json", {"mine": result([0.5] * 10)})
    words = report_of(run)
    assert "measured on different queries before and after" in words
    assert "Most improved" not in words


def test_missing_folder_and_broken_file_are_errors(tmp_path, run):
    with pytest.raises(DataError, match="no such folder"):
        report_of(tmp_path / "nowhere")
    (run / "environment.json").write_text("{")
    with pytest.raises(DataError, match=r"environment.json: not JSON"):
        report_of(run)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.35, 1.41), (-3, 7), (1e-6, 2e-5), (120, 160), (5, 5), (0, 0), (1, 100_000)]
)
def test_ticks_are_round_and_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in pairwise(ticks)}
    assert steps == {1.0}


def test_curve_starts_and_ends_where_the_values_are():
    svg = re.search(r"<svg.*?</svg>", line_plot("Loss", {"loss": [(0, 0.0), (50, 0.5), (100, 1.0)]}), re.S).group()
    xml.dom.minidom.parseString(svg)
    points = [
        tuple(map(float, p.split(","))) for p in re.search(r'polyline[^>]*points="([^"]*)"', svg).group(1).split()
    ]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] > points[1][1] > points[2][1]  # up is less in SVG
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2)
    assert "loss: 0 at step 0, 1 at step 100" in svg  # for those who do not see it


def test_long_curves_are_drawn_as_mean_and_range():
    plot = line_plot("Loss", {"loss": [(step, float(step % 2)) for step in range(100_000)]})
    assert len(plot) < 60_000
    assert 'class="band' in plot


def test_interval_bar_is_green_or_red_only_when_clear():
    kinds = [re.search(r'class="interval (\w+)"', interval_bar(m, lo, hi, (-1, 1))).group(1) for m, lo, hi in
             [(0.5, 0.1, 0.9), (-0.5, -0.9, -0.1), (0.1, -0.1, 0.3)]]  # fmt: skip
    assert kinds == ["better", "worse", "unclear"]


def test_change_plot_counts_all_queries():
    plot = change_plot("Change", [0.5] * 700 + [0.0] * 200 + [-0.25] * 100)
    assert "700 queries better, 100 worse, of 1000" in plot
    assert len(re.findall("<rect", plot)) < 300


def test_numbers_are_short():
    assert [short_number(v) for v in (0, 1250, 0.35, 2e-5, 12.5)] == ["0", "1,250", "0.35", "2e-05", "12.5"]
