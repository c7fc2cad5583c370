"""Cut the documents of a folder into chunks with the headings that they stand under.

    python -m data_pipelines.chunk_documents docs/ --out chunks.jsonl

Reads every .txt, .md and .html below the folder. A chunk is whole paragraphs of one section, as many as fit into --words; a
longer paragraph is cut between sentences, and a longer sentence between words. Headings are those of Markdown (#) and HTML (h1
to h6); a document's title is its first heading of the highest level, or the name of its file. Code between ``` is a paragraph,
and what looks like a heading in it is none. A line of the output:

    {"text": str, "title": str, "headings": ["Install", "On Linux"], "document": "guide/setup.md", "chunk": 0}

Cutting into sentences goes by . ! ? and a blank, and by their Chinese forms; the words of a script without blanks are its
characters.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from embedtrain.errors import ConfigError, DataError, EmbedtrainError

ENDINGS = (".txt", ".md", ".html", ".htm")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。\uff01\uff1f])\s*")
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_BLOCKS = {
    "p",
    "li",
    "div",
    "section",
    "article",
    "td",
    "th",
    "tr",
    "pre",
    "blockquote",
    "dt",
    "dd",
    "br",
    "table",
    "ul",
    "ol",
}
_UNSEEN = {"script", "style", "title", "nav", "noscript", "template"}


@dataclass
class Section:
    """The paragraphs below a heading. headings: (level, text), from the outermost in."""

    headings: tuple[tuple[int, str], ...] = ()
    paragraphs: list[str] = field(default_factory=list)


def sections(text: str, ending: str) -> list[Section]:
    """Of a document, by the ending of its file: .md and .html have headings."""
    if ending in (".html", ".htm"):
        reader = _HtmlSections()
        reader.feed(text)
        reader.close()
        reader.end_block()
        return reader.found
    return _markdown(text) if ending == ".md" else [Section(paragraphs=_paragraphs(text))]


def _markdown(text: str) -> list[Section]:
    found = [Section()]
    block: list[str] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        heading = None if fenced else _HEADING.match(line)
        if heading is not None or (not line.strip() and not fenced):
            _end(found[-1], block)
        if heading is not None:
            found.append(_below(found[-1], len(heading[1]), heading[2]))
        elif line.strip():
            block.append(line.rstrip())
    _end(found[-1], block)
    return found


def _end(section: Section, block: list[str]) -> None:
    if block:
        section.paragraphs.append("\n".join(block))
        block.clear()


def _below(section: Section, level: int, heading: str) -> Section:
    """The section that this heading opens behind another."""
    return Section((*(above for above in section.headings if above[0] < level), (level, heading)))


def _paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


class _HtmlSections(HTMLParser):
    """The text of a page, without scripts, styles and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found = [Section()]
        self._text: list[str] = []
        self._unseen: list[str] = []
        self._level: int | None = None  # inside a heading

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif re.fullmatch("h[1-6]", tag):
            self.end_block()
            self._level = int(tag[1])
        elif tag in _BLOCKS:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        elif tag in _BLOCKS or re.fullmatch("h[1-6]", tag):
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self._text.append(data)

    def end_block(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text.clear()
        if text and self._level is not None:
            self.found.append(_below(self.found[-1], self._level, text))
        elif text:
            self.found[-1].paragraphs.append(text)
        self._level = None


def words(text: str) -> int:
    """
    >>> words("two words"), words("三个字")
    (2, 3)
    """
    return len(_WORD.findall(text))


def chunks(paragraphs: Sequence[str], longest: int) -> list[str]:
    """Texts of at most `longest` words, cut at the largest boundary that fits.

    >>> chunks(["one two", "three", "four five six. seven"], 3)
    ['one two\\n\\nthree', 'four five six.', 'seven']
    """
    found: list[str] = []
    used = 0
    for paragraph in paragraphs:
        pieces = [paragraph] if words(paragraph) <= longest else list(_pieces(paragraph, longest))
        for number, piece in enumerate(pieces):
            size = words(piece)
            if found and used + size <= longest:
                found[-1] += ("\n\n" if number == 0 else " ") + piece
                used += size
            else:
                found.append(piece)
                used = size
    return found


def _pieces(paragraph: str, longest: int) -> Iterator[str]:
    """Sentences, the long ones in parts."""
    for sentence in _SENTENCE.split(paragraph):
        places = list(_WORD.finditer(sentence))
        for start in range(0, len(places), longest):
            part = places[start : start + longest]
            yield sentence[part[0].start() : part[-1].end()]


def rows(path: Path, folder: Path, *, longest: int, shortest: int) -> Iterator[dict[str, Any]]:
    """The chunks of a document; those with less than `shortest` words are left out.

    Raises DataError for bytes that are no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8. Convert the file: iconv -f <its encoding> -t UTF-8."
        ) from None
    found = sections(text, path.suffix.lower())
    headings = [heading for section in found for heading in section.headings]
    title = min(headings, key=lambda heading: heading[0])[1] if headings else path.stem
    number = 0
    for section in found:
        for chunk in chunks(section.paragraphs, longest):
            if words(chunk) >= shortest:
                yield {
                    "text": chunk,
                    "title": title,
                    "headings": [heading for _, heading in section.headings if heading != title],
                    "document": path.relative_to(folder).as_posix(),
                    "chunk": number,
                }
                number += 1


def documents(folder: Path) -> list[Path]:
    """Raises DataError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise DataError(f"{folder}: no document in it. Expected files that end in {', '.join(ENDINGS)}.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="documents, in folders of any depth")
    parser.add_argument("--words", type=int, default=250, help="of a chunk, at most")
    parser.add_argument("--shortest", type=int, default=20, help="words below which a chunk is left out")
    parser.add_argument("--out", required=True, type=Path, help="JSONL to write")
    given = parser.parse_args()
    count = 0
    try:
        if not 1 <= given.shortest <= given.words:
            raise ConfigError(f"--shortest {given.shortest}, --words {given.words}: expected 1 <= shortest <= words.")
        found = documents(given.folder)
        with given.out.open("w", encoding="utf-8") as file:
            for path in found:
                for row in rows(path, given.folder, longest=given.words, shortest=given.shortest):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
    except EmbedtrainError as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {count:,} chunks of {len(found):,} documents")


if __name__ == "__main__":
    main()
