"""The table of recipes: what each is made of from its config, what was published and run from its card."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from docs.generator.markdown import prose, table
from embedtrain.config.compose import Composed, compose_config, recipe_files
from embedtrain.config.models import models_of
from embedtrain.config.stages import stage_configs

_INTRO = """\
A recipe is a whole run: `accelerate launch train.py recipe=<name>`. It states only what differs from the defaults, and its
first lines say what it is and how to start it. Behind every number stands whether it was *published* (and where), *derived*
or *assumed*. Before it costs anything:

    embedtrain recipes                                              # all of them, in short
    embedtrain check recipe=<name> launch=ddp_8gpu hardware=h100    # parameters beside the published ones, memory, hours
    embedtrain smoke recipe=<name>                                  # all its stages in a minute, on a small random model

Neither needs a model hub: what decides the shapes of the published models ships in [models/](models). Your own:
`recipe=path/to/mine.yaml`, or `--config-dir DIR` with `DIR/recipe/mine.yaml`."""

_HEAD = (
    *("recipe", "paper", "backbone", "pooling", "loss", "negatives", "data", "stages"),
    *("published", "published hardware", "run here", "not run, and what differs"),
)


def recipes_page(note: str) -> str:
    rows = [_row(name, composed(name)) for name in recipe_files()]
    return "\n\n".join([note, "# Recipes", _INTRO, table(_HEAD, rows)]) + "\n"


@cache
def composed(name: str) -> Composed:
    return compose_config([f"recipe={name}"])


def _row(name: str, of: Composed) -> tuple[str, ...]:
    card = of.config["card"]
    stages = stage_configs(of.config)
    scores = ", ".join(f"{benchmark} {score}" for benchmark, score in card["scores"].items() if score is not None)
    return (
        f"[{name}]({name}.yaml)" + (f"<br>{card['title']}" if card["title"] else ""),
        prose(card["paper"] or ""),
        " + ".join(str(model.get("name", "")) for model in models_of(of.config["backbone"]).values()).replace(
            "???", "yours"
        ),
        _chosen(of.choices, "pooling"),
        _chosen(of.choices, "loss", "objective"),
        "; ".join(dict.fromkeys(_negatives(stage) for stage in stages.values())),
        _data(of),
        ", ".join(stages) if "" not in stages else "one",
        scores,
        card["hardware"] or "",
        card["ran"] or "",
        card["not_run"] or "",
    )


def _chosen(choices: dict[str, str], *groups: str) -> str:
    """The option of the run, and those of its stages where they differ, and what is added to the loss."""
    found = [choices[group] for group in groups if group in choices]
    for key, option in choices.items():
        place = re.fullmatch(r"(\w+)@(stages\.[\w-]+\.\w+|(stages\.[\w-]+\.)?auxiliary\.[\w-]+\.\w+)", key)
        if place and place[1] in groups:
            found.append(option)
    return ", ".join(dict.fromkeys(found))


def _negatives(config: dict[str, Any]) -> str:
    if config["objective"]:
        return "none"
    own = config["data"]["num_negatives"]
    hard = "those of the rows" if own is None else f"{own} hard" if own else "no hard"
    mined = " mined by the run" if config["miner"] else ""
    return f"{hard}{mined}" + (" alone" if config["loss"].get("negatives") == "hard_only" else " + in-batch")


def _data(of: Composed) -> str:
    """By where the keys are from: Hydra does not tell of an option that is chosen in a list."""
    places = [place.split("/") for key, place in of.origins.items() if re.match(r"(stages\.[\w-]+\.)?data\.", key)]
    options = [option for group, *rest in places if group == "data" for option in rest]
    linked = [f"[{option}](../configs/data/{option}.yaml)" for option in dict.fromkeys(options)]
    stages = stage_configs(of.config).values()
    written = [name for stage in stages for name, node in stage["data"]["sources"].items() if node is not None]
    return ", ".join(linked or dict.fromkeys(written))
