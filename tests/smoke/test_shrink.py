"""The small version of a config: the same components, and nothing of the large one's names, numbers and places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedtrain import cli
from embedtrain.config.compose import compose_config
from embedtrain.config.stages import stage_configs
from embedtrain.smoke import shrink
from embedtrain.smoke.models import WIDTH, small_model, small_tokenizer
from embedtrain.smoke.rows import ROWS, texts, write_source


def targets(node: Any, place: str = "") -> dict[str, str]:
    if not isinstance(node, dict):
        return {}
    own = {place: node["_target_"]} if "_target_" in node else {}
    return own | {k: v for key, value in node.items() for k, v in targets(value, f"{place}.{key}").items()}


def test_components_stay_what_they_are(tmp_path: Path) -> None:
    config = compose_config(["recipe=nv_embed"]).config
    small = shrink(config, tmp_path)
    assert list(stage_configs(small)) == list(stage_configs(config))
    for stage, large in stage_configs(config).items():
        made = stage_configs(small)[stage]
        for part in ("backbone", "pooling", "loss"):
            assert targets(made[part]) == targets(large[part])
        assert made["loss"] == large["loss"]
        assert made["data"]["batching"] == large["data"]["batching"]
        assert list(made["data"]["sources"]) == list(large["data"]["sources"])
        assert made["training"]["max_steps"] == 2
        assert all(Path(node["path"]).is_relative_to(tmp_path) for node in made["data"]["sources"].values())
    assert config == compose_config(["recipe=nv_embed"]).config, "the config that was given is not touched"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("google-bert/bert-base-uncased", "bert"),
        ("FacebookAI/xlm-roberta-base", "xlm-roberta"),
        ("answerdotai/ModernBERT-base", "modernbert"),
        ("mistralai/Mistral-7B-v0.1", "mistral"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3"),
        ("google/gemma-3-270m", "gemma3_text"),
        ("EleutherAI/pythia-70m", "gpt_neox"),
        ("bigscience/bloom-560m", "bloom"),
        ("allenai/OLMoE-1B-7B-0924", "olmoe"),
    ],
)
def test_a_small_model_is_of_the_family_and_encodes(name: str, family: str, tmp_path: Path) -> None:
    from embedtrain.export.load import load_encoder

    folder = small_model(name, texts(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == family
    vectors = load_encoder(folder).encode(["read a file", "write"], role="query")
    assert vectors.shape == (2, WIDTH)


def test_a_tokenizer_puts_around_a_text_what_its_family_does() -> None:
    words = small_tokenizer(
        texts(), {"cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    )
    ids = words(["read a file"])["input_ids"][0]
    assert (ids[0], ids[-1]) == (words.cls_token_id, words.eos_token_id)
    plain = small_tokenizer(texts(), {"bos_token": "<s>", "eos_token": "</s>"})
    assert plain.decode(plain(["read a file"])["input_ids"][0]) == "read a file"
    assert plain.pad_token == plain.eos_token


def test_rows_have_what_the_columns_of_the_source_name(tmp_path: Path) -> None:
    node = {
        "_target_": "embedtrain.data.sources.HuggingFaceDataset",
        "columns": {"query": "a", "positives": "b", "scores": "c", "label": "d"},
        "score_range": [0, 5],
    }
    found = write_source(node, tmp_path / "rows.jsonl", negatives=2)
    rows = [json.loads(line) for line in Path(found["path"]).read_text().splitlines()]
    assert len(rows) == ROWS
    assert found["columns"].keys() == {"query", "positives", "negatives", "scores", "label"}
    assert all(len(row["scores"]) == 3 and 0 <= min(row["scores"]) <= max(row["scores"]) <= 5 for row in rows)
    assert len({score for row in rows for score in row["scores"]}) > 3


def test_a_used_folder_and_a_missing_recipe_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    assert cli.main(["smoke", "recipe=quickstart", f"output={tmp_path}"]) == 2
    assert "a smoke run is there already" in capsys.readouterr().err
    assert cli.main(["smoke"]) == 2
    assert "recipe: required" in capsys.readouterr().err


def test_a_key_of_the_card_that_the_recipe_does_not_have_is_refused(tmp_path: Path) -> None:
    from embedtrain.errors import ConfigError

    config = compose_config(["recipe=nv_embed"]).config
    config["card"]["smoke"] = {"stages.third.loss.temperature": 1}
    with pytest.raises(
        ConfigError, match=r"card\.smoke\.stages\.third\.loss\.temperature: this recipe has no stages\.third"
    ):
        shrink(config, tmp_path)
