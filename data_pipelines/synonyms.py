"""Write the synonyms of WordNet's database files, for the source `augmented`.

    python -m data_pipelines.synonyms WordNet-3.0/dict --out synonyms.jsonl

The folder holds data.noun, data.verb, data.adj and data.adv (format: wndb(5WN); wordnet.princeton.edu). Words of a synset are
synonyms of each other, whatever the sense in which a text has them: WordNet does not say which is meant. Phrases are left
out. A line of the output, in the order of words:

    {"word": "quick", "synonyms": ["fast", "speedy"]}
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from embedtrain.errors import DataError

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")


def synsets(path: Path) -> Iterator[list[str]]:
    """The words of each synset in lower case, without phrases. Raises DataError for a line of another form."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(" "):
            continue  # the licence
        fields = line.split(" ")
        try:
            count = int(fields[3], 16)
            words = [fields[4 + 2 * place] for place in range(count)]
        except (IndexError, ValueError):
            raise DataError(
                f"{path}, line {number}: expected a synset (offset file type count word id ...), got {line[:60]!r}."
            ) from None
        plain = (word.partition("(")[0].lower() for word in words)  # adjectives say where they may stand: galore(ip)
        yield list(dict.fromkeys(word for word in plain if "_" not in word))


def synonyms(folder: Path) -> dict[str, list[str]]:
    """By word, in the order of words; synonyms in that of senses. Raises DataError where a file is missing."""
    found: dict[str, dict[str, None]] = {}
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} does not exist. Expected the dict folder of WordNet, with {', '.join(FILES)}.")
        for words in synsets(path):
            for word in words:
                found.setdefault(word, {}).update(dict.fromkeys(other for other in words if other != word))
    return {word: list(found[word]) for word in sorted(found) if found[word]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="WordNet's dict folder")
    parser.add_argument("--out", required=True, type=Path, help="JSONL to write")
    given = parser.parse_args()
    try:
        found = synonyms(given.folder)
    except DataError as error:
        sys.exit(f"error: {error}")
    rows = ({"word": word, "synonyms": others} for word, others in found.items())
    given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{given.out}: {len(found):,} words")


if __name__ == "__main__":
    main()
