"""Write docstring -> source pairs of the installed Python standard library to a folder.

    python -m data_pipelines.stdlib_docstrings --out data/stdlib

The folder has `train.jsonl` for training, `heldout/` for evaluation (a BEIR folder, splits dev and test, other modules than
training) and `manifest.json`. How a pair is made: embedtrain/data/stdlib.py.
"""

from __future__ import annotations

import argparse
import json
import sys

from embedtrain.data.stdlib import prepare
from embedtrain.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; one that is complete is left as it is")
    out = parser.parse_args().out
    try:
        folder = prepare(out)
    except DataError as error:
        sys.exit(f"error: {error}")
    counts = json.loads((folder / "manifest.json").read_text("utf-8"))["pairs"]
    print(f"{folder}: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()) + " pairs")


if __name__ == "__main__":
    main()
