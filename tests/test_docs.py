"""The pages of docs/: as the generator writes them, whole, with links that lead somewhere and commands that work."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn
from transformers import BertConfig

import embedtrain.losses
from docs.generator.docstring import Block, Docstring
from docs.generator.markdown import first_sentence, papers, prose, table, without_papers
from docs.generator.options import chosen, docstring, load, options
from docs.generator.order import LOSSES
from docs.generator.overview import cited
from docs.generator.pages import DOCS, PAGES, parts_of, refuse_unordered
from embedtrain.config.compose import ROOT, compose_config
from embedtrain.config.validate import validate, validate_mining
from embedtrain.planning import make_plan
from tests.helpers.models import tiny_model_dir

OPTIONS = options("loss")
PARTS = parts_of(OPTIONS)
COMPONENTS = {option.kind for option in OPTIONS.values()} | set(PARTS)
CHOOSING = DOCS / "choosing_a_loss.md"
WRITTEN = sorted(DOCS.glob("*.md"))


# ------------------------------------------------------------------------------------------------------ the pages


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_what_the_generator_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path](), f"{path.name} is out of date: run `make docs`"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_every_link_inside_the_repository_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if address.startswith("https://"):
            continue
        file, _, heading = address.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name}: {address}"
        if heading:
            assert heading in headings(target), f"{path.name}: {address}"


def headings(path: Path) -> list[str]:
    """Anchors as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines]


def test_an_option_without_a_place_in_the_reading_order_is_refused() -> None:
    with pytest.raises(
        SystemExit, match=r"order\.py: novel must be an option, configs/loss/novel\.yaml, and stand in one family"
    ):
        refuse_unordered(LOSSES, OPTIONS | {"novel": OPTIONS["infonce"]}, "loss")


# -------------------------------------------------------------------------------------------- docstrings of losses


@pytest.mark.parametrize("name", OPTIONS)
def test_a_loss_has_a_formula_a_paper_and_its_cost(name: str) -> None:
    found = docstring(OPTIONS[name].kind)
    assert found.formulas
    assert found.cost
    # A loss made of others may be no more than their sum.
    assert cited(OPTIONS[name]) or not OPTIONS[name].names_its_class or takes_losses(OPTIONS[name].kind)


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_a_part_of_infonce_has_a_paper_and_its_cost(kind: type) -> None:
    found = docstring(kind)
    assert papers(" ".join(block.text for block in found.body))
    assert found.cost


@pytest.mark.parametrize("kind", sorted(COMPONENTS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_setting_is_explained_in_the_order_of_the_signature(kind: type) -> None:
    assert list(docstring(kind).parameters) == list(inspect.signature(kind).parameters)


def takes_losses(kind: type) -> bool:
    return any("nn.Module" in str(parameter.annotation) for parameter in inspect.signature(kind).parameters.values())


def losses_and_parts() -> Iterator[type]:
    """Public classes that are whole: what turns a batch into a LossOutput, and what a contrastive loss is given to hold."""
    for module in pkgutil.walk_packages(embedtrain.losses.__path__, "embedtrain.losses."):
        if module.ispkg or "kernels" in module.name:
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(kind) or kind.__module__ != module.name:
                continue
            if not kind.__name__.startswith("_") and not inspect.isabstract(kind) and is_component(kind):
                yield kind


def is_component(kind: type) -> bool:
    call = getattr(kind, "forward" if issubclass(kind, nn.Module) else "__call__", None)
    gives = inspect.signature(call).return_annotation if callable(call) else None
    return (
        hasattr(kind, "turn") or gives == "LossOutput" or (gives == "EmbeddingBatch" and ".extra." in kind.__module__)
    )


def test_every_loss_and_every_part_can_be_chosen_by_name() -> None:
    found = list(losses_and_parts())
    assert len(found) > 30
    assert [kind.__name__ for kind in found if kind not in COMPONENTS] == []


# ------------------------------------------------------------------------------------------------ choosing a loss


def sections() -> list[str]:
    return re.split(r"^## ", CHOOSING.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", section, flags=re.DOTALL)


COMMANDS = [(section.splitlines()[0], command) for section in sections() for command in blocks(section, "sh")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the models of the page: their sizes, without weights."""
    shapes = {
        "BAAI/bge-small-en-v1.5": (384, 12, 512),
        "nreimers/MiniLM-L6-H384-uncased": (384, 6, 512),
        "google-bert/bert-base-uncased": (768, 12, 512),
        "answerdotai/ModernBERT-base": (768, 22, 8192),
        "Snowflake/snowflake-arctic-embed-m-v1.5": (768, 12, 512),
        "mixedbread-ai/mxbai-embed-large-v1": (1024, 24, 512),
    }
    folders = {}
    for number, (name, (width, layers, positions)) in enumerate(shapes.items()):
        folder = Path(tiny_model_dir("bert", tmp_path_factory.mktemp(f"model_{number}")))
        config = BertConfig.from_pretrained(folder)
        config.update({"hidden_size": width, "num_hidden_layers": layers, "max_position_embeddings": positions})
        config.save_pretrained(folder)
        as_sentence_transformer(folder, width)
        folders[name] = str(folder)
    return folders


def as_sentence_transformer(folder: Path, width: int) -> None:
    """With what a teacher's folder has besides."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


@pytest.fixture
def rows_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that the page names, with its section's row in it many times over."""
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("".join(f"text {i}\n" for i in range(200)), encoding="utf-8")
    for section in sections():
        for row, command in zip(blocks(section, "json"), blocks(section, "sh"), strict=False):
            for file in re.findall(r"=(\w+\.jsonl)", command):
                Path(file).write_text(
                    "\n".join(json.dumps(varied(json.loads(row), i)) for i in range(200)), encoding="utf-8"
                )


def varied(row: dict, number: int) -> dict:
    """The row with other texts, and one of 20 classes."""
    change = {"label": number % 20}

    def other(value: object, key: str) -> object:
        if isinstance(value, list):
            return [other(part, key) for part in value]
        return f"{value} {change.get(key, number)}" if isinstance(value, str) else value

    return {key: other(value, key) for key, value in row.items()}


@pytest.mark.parametrize(("title", "command"), COMMANDS, ids=[title for title, _ in COMMANDS])
def test_a_command_of_the_page_passes_check(
    title: str, command: str, models: dict[str, str], rows_of_the_page: None
) -> None:
    program, subcommand, *overrides = shlex.split(command)
    assert (program, subcommand) == ("embedtrain", "train")
    for name, folder in models.items():
        overrides = [override.replace(f"={name}", f"={folder}") for override in overrides]
    composed = compose_config(overrides)
    validate(composed.config, composed.problems)
    plan = make_plan(composed.config, world=1)
    assert plan.unknown == []
    assert plan.rows


def test_every_section_has_a_command_and_says_when_not() -> None:
    for section in sections():
        title = section.splitlines()[0]
        assert title == "What was measured" or (blocks(section, "sh") and "\nNot " in section), title


def test_every_option_that_the_page_names_is_linked_where_it_is_explained() -> None:
    known = set(OPTIONS) | set(options("objective"))
    named = re.findall(r"\[`(\w+)`\]\(losses\.md#(\w+)\)", CHOOSING.read_text(encoding="utf-8"))
    assert len(named) > 30
    assert all(name == heading and name in known for name, heading in named)


# ----------------------------------------------------------------------------------------------------- mining

MINING = [
    line for block in blocks((DOCS / "mining.md").read_text(encoding="utf-8"), "sh") for line in block.splitlines()
]


@pytest.mark.parametrize("command", MINING)
def test_a_command_of_the_page_on_mining_is_a_valid_config(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mined").mkdir()
    for name in ("pairs.jsonl", "mined/pairs.jsonl", "corpus.jsonl"):
        Path(name).write_text('{"query": "q", "positive": "p", "text": "t"}\n', encoding="utf-8")
    words = shlex.split(command)
    overrides = words[words.index("train.py") + 1 :] if "train.py" in words else words[2:]
    is_mine = words[:2] == ["embedtrain", "mine"]
    if is_mine:  # the command's own words are no settings
        assert any(word.startswith("output=") for word in overrides)
        overrides = [re.sub("^model=", "miner.model=", w) for w in overrides if not re.match("(output|format)=", w)]
        if not any(word.startswith("miner=") for word in overrides):
            overrides.append("miner=percent_of_positive")
    composed = compose_config(overrides)
    (validate_mining if is_mine else validate)(composed.config, composed.problems)


# --------------------------------------------------------------------------------------------- the generator itself


def test_a_docstring_is_taken_apart() -> None:
    found = Docstring.parse(
        "What it does,\nin one line.\n\n    a + b\n      + c\n\nProse  about it.\nCost: one\nproduct.\n\n"
        "size, depth: of the backbone\nmargin   how far,\n         in units",
        ("margin", "size", "depth"),
    )
    assert found.summary == "What it does, in one line."
    assert found.body == (Block("a + b\n  + c", is_formula=True), Block("Prose about it."))
    assert found.formulas == ["a + b\n  + c"]
    assert found.cost == "one product."
    assert found.parameters == {"size": "of the backbone", "depth": "of the backbone", "margin": "how far, in units"}


def test_prose_that_begins_like_a_table_is_no_table() -> None:
    found = Docstring.parse("One line.\n\nmargin of victory\nis prose.", ("margin",))
    assert found.parameters == {}
    assert found.body == (Block("margin of victory is prose."),)


def test_citations_become_links_and_leave_a_table_cell() -> None:
    text = "SPLADE (Formal, arXiv:2107.05720, section 3.1; doi 10.1145/3404835.3463098): <sparse>. Then"
    assert papers(text) == [
        "[2107.05720](https://arxiv.org/abs/2107.05720)",
        "[doi](https://doi.org/10.1145/3404835.3463098)",
    ]
    assert "[arXiv:2107.05720](https://arxiv.org/abs/2107.05720), section 3.1" in prose(text)
    assert r"\<sparse\>" in prose(text)
    assert without_papers("BERT (Devlin, arXiv:1810.04805): words (arXiv:1810.04805).") == "BERT (Devlin): words."


def test_names_become_links_but_not_inside_paths_and_settings() -> None:
    names = {"score_kl": "#score_kl"}
    assert (
        prose("score_kl, (score_kl); `score_kl`", names)
        == "[score_kl](#score_kl), ([score_kl](#score_kl)); [`score_kl`](#score_kl)"
    )
    assert (
        prose("loss=score_kl score_kl.yaml a/score_kl `loss=score_kl`", names)
        == "loss=score_kl score_kl.yaml a/score_kl `loss=score_kl`"
    )


def test_a_sentence_ends_before_a_capital_and_not_at_an_abbreviation() -> None:
    assert first_sentence("As in Zhang et al. (2017), by KL. Needs it.") == "As in Zhang et al. (2017), by KL."
    assert first_sentence("Hadsell et al. 2006 without an end") == "Hadsell et al. 2006 without an end"


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(("a",), [("x | y",)]).splitlines()[-1] == r"| x \| y |"


def test_what_an_option_brings_along_is_not_what_a_recipe_chose() -> None:
    brought = {
        "loss": "bge_m3",
        "loss@loss.losses.dense": "infonce",
        "loss@loss.losses.sparse": "gist",
        "pooling": "mean",
    }
    assert list(chosen(brought, "loss", OPTIONS)) == ["bge_m3", "gist"]
    staged = {"loss": "matryoshka", "loss@loss.inner": "infonce", "loss@stages.last.loss": "stella"}
    assert list(chosen(staged, "loss", OPTIONS)) == ["matryoshka", "stella"]


def test_classes_are_loaded_by_their_path() -> None:
    assert load("embedtrain.losses.infonce.InfoNCE") is OPTIONS["gist"].kind
    assert OPTIONS["gist"].path.is_relative_to(ROOT)
