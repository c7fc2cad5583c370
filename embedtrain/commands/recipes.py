"""`embedtrain recipes`: what recipe=<name> can be."""

from __future__ import annotations

import json

from embedtrain.commands.arguments import Arguments


def main(arguments: Arguments) -> int:
    from embedtrain.config.cards import cards

    output = arguments.take("output", "text", ("text", "json"))
    found = cards(arguments.config_dir)
    if output == "json":
        print(json.dumps({name: {"about": about, **card} for name, (about, card) in found.items()}, indent=2))
        return 0
    for name, (about, card) in found.items():
        published = ", ".join(
            f"{benchmark} {score}" for benchmark, score in (card.get("scores") or {}).items() if score is not None
        )
        said = {
            "paper": card.get("paper"),
            "published": published,
            "ran": card.get("ran"),
            "not run": card.get("not_run"),
        }
        lines = [*about, *(f"{what:<11}{text}" for what, text in said.items() if text)]
        print(f"{name}\n    " + "\n    ".join(lines))
    return 0
