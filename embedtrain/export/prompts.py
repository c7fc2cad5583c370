"""Templates of prompts that have something behind the text, in a file that embedtrain reads: `embedtrain/prompts.json`.

config_sentence_transformers.json has what stands before texts; what is behind all of them alike the tokenizer adds.
"""

from __future__ import annotations

from pathlib import Path

from embedtrain.data.prompts import TEXT, Prompts
from embedtrain.export import layout
from embedtrain.export.heads import FOLDER

_FILE = "prompts.json"


def write_templates(prompts: Prompts, folder: Path) -> None:
    """All templates by name, where one has a place for the text; else nothing."""
    named = prompts.named()
    if any(TEXT in template for template in named.values()):
        layout.write_json(folder / FOLDER / _FILE, named)


def read_templates(folder: Path) -> dict[str, str]:
    """Template by name; empty where nothing stands behind texts."""
    file = folder / FOLDER / _FILE
    return layout.read_json(file) if file.exists() else {}
