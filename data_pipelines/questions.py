"""Write question -> chunk pairs: questions from a language model, or headings where there is none.

    python -m data_pipelines.questions chunks.jsonl --out pairs.jsonl
    python -m data_pipelines.questions chunks.jsonl --out pairs.jsonl --endpoint http://localhost:8000/v1 --model NAME --ask

EnterpriseEM (arXiv:2406.00010) has a language model write questions that a chunk answers, and trains on them. Reads what
`data_pipelines.chunk_documents` writes: {"text", "title", "headings"}. A line of the output, which data=pairs reads:

    {"query": str, "positives": [str]}

Without --endpoint the query of a chunk is its title and headings: "Setup: On Linux". Chunks under the same headings are positives
of one query, so that none is a negative of another.

With --endpoint, any OpenAI-compatible one, nothing is sent before --ask is given: it says how many chunks would be, and about how
many tokens. Replies are kept in --cache by what was asked, so a job that starts again asks only what is new. The key is read from
the environment variable --api-key-variable and written nowhere. Chunks leave your machine as they are: mask them first
(`data_pipelines.mask_pii`). A model's questions repeat the words of its chunk; read some before you train on them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import ConfigError, DataError, EmbedtrainError
from embedtrain.mining.filters.answers import Answers
from embedtrain.mining.filters.endpoint import Endpoint
from embedtrain.mining.filters.judge import BYTES_PER_TOKEN

PROMPT = """Below is a part of a document. Write {count} questions that somebody might ask who does not know the document, and \
that this part answers. Use other words than the text where you can. Write one question a line and nothing else.

{heading}

{text}"""

_NUMBERED = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*")
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)


def heading(chunk: Mapping[str, Any]) -> str:
    """Title and headings as one text.

    >>> heading({"title": "Setup", "headings": ["On Linux"]})
    'Setup: On Linux'
    """
    return ": ".join([chunk["title"], *chunk["headings"]])


def heading_pairs(chunks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each heading, with all its chunks."""
    found: dict[str, list[str]] = {}
    for chunk in chunks:
        found.setdefault(heading(chunk), []).append(chunk["text"])
    return [{"query": query, "positives": list(dict.fromkeys(texts))} for query, texts in found.items()]


def questions(reply: str, count: int) -> list[str]:
    """The questions of a reply, without numbers, and at most `count`.

    >>> questions("1. Who?\\n\\n- What for?\\nSure, I can", 3)
    ['Who?', 'What for?']
    """
    lines = (_NUMBERED.sub("", line).strip() for line in _THOUGHT.sub("", reply).splitlines())
    return list(dict.fromkeys(line for line in lines if line.endswith(("?", "\uff1f"))))[:count]


class Writer:
    """What a language model is asked about a chunk, and what it said.

    request   fields of the request besides model and messages
    cache     folder of replies
    """

    def __init__(self, *, model: str, count: int, request: Mapping[str, Any], cache: Path) -> None:
        if count < 1:
            raise ConfigError(f"--count {count}: expected at least 1 question of a chunk.")
        self.model = model
        self.count = count
        self.request = dict(request)
        self.answers = Answers(cache)
        self._writing = threading.Lock()

    def body(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        prompt = PROMPT.format(count=self.count, heading=heading(chunk), text=chunk["text"])
        return {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.request}

    def key(self, chunk: Mapping[str, Any]) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps(self.body(chunk), sort_keys=True).encode())

    def unasked(self, chunks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Chunks without a reply, each once."""
        return list({key: chunk for chunk in chunks if (key := self.key(chunk)) not in self.answers}.values())

    def tokens(self, chunks: Iterable[Mapping[str, Any]]) -> int:
        """About how many would be sent."""
        return sum(len(self.body(chunk)["messages"][0]["content"].encode()) for chunk in chunks) // BYTES_PER_TOKEN

    def ask(self, endpoint: Endpoint, chunks: Sequence[Mapping[str, Any]], concurrency: int) -> None:
        """Several at a time. A reply is on disk as soon as it is there, also where another question fails."""

        def one(chunk: Mapping[str, Any]) -> None:
            reply = endpoint.ask(self.body(chunk))
            with self._writing:
                self.answers.add(self.key(chunk), reply)

        with ThreadPoolExecutor(concurrency) as pool:
            try:
                for _ in pool.map(one, chunks):
                    pass
            except BaseException:
                endpoint.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                self.answers.close()

    def pairs(self, chunks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each question; a question that several chunks got has them all as positives."""
        found: dict[str, list[str]] = {}
        for chunk in chunks:
            for question in questions(self.answers[self.key(chunk)], self.count):
                found.setdefault(question, []).append(chunk["text"])
        return [{"query": query, "positives": list(dict.fromkeys(texts))} for query, texts in found.items()]


def read_chunks(path: Path) -> list[dict[str, Any]]:
    """Raises DataError for a line that is no chunk."""
    lines = LinesFile(path)
    found = []
    for row in range(len(lines)):
        values = lines.json(row)
        texts = (values.get("text"), values.get("title"), *(values.get("headings") or ()))
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(
                f"{lines.where(row)}: expected a chunk with text, title and headings, got {str(values)[:80]!r}."
            )
        found.append({**values, "headings": values.get("headings") or []})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunks", type=Path, help="JSONL or JSONL.gz of chunks")
    parser.add_argument("--out", required=True, type=Path, help="JSONL to write")
    parser.add_argument("--endpoint", help="up to the version, such as http://localhost:8000/v1; without it: headings")
    parser.add_argument("--model", help="its name there")
    parser.add_argument("--ask", action="store_true", help="really ask")
    parser.add_argument("--count", type=int, default=3, help="questions of a chunk")
    parser.add_argument(
        "--request", type=json.loads, default={"temperature": 0}, help="more fields of the request, as JSON"
    )
    parser.add_argument("--api-key-variable", help="environment variable that holds the key; without it no key is sent")
    parser.add_argument("--cache", type=Path, default=Path("runs/questions"), help="folder of replies")
    parser.add_argument("--concurrency", type=int, default=8, help="questions under way at a time")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until a reply must be there")
    given = parser.parse_args()
    try:
        pairs = _pairs(given)
    except EmbedtrainError as error:
        sys.exit(f"error: {error}")
    if pairs is not None:
        given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8")
        print(f"{given.out}: {len(pairs):,} queries")


def _pairs(given: argparse.Namespace) -> list[dict[str, Any]] | None:
    """None: nothing was asked."""
    chunks = read_chunks(given.chunks)
    if given.endpoint is None:
        return heading_pairs(chunks)
    if not given.endpoint.startswith(("http://", "https://")) or given.model is None or given.concurrency < 1:
        raise ConfigError(
            f"--endpoint {given.endpoint}, --model {given.model}, --concurrency {given.concurrency}: expected an address such as "
            "http://localhost:8000/v1, a model's name and at least 1."
        )
    writer = Writer(model=given.model, count=given.count, request=given.request, cache=given.cache)
    new = writer.unasked(chunks)
    print(f"{len(chunks):,} chunks, {len(new):,} to ask about: about {writer.tokens(new):,} tokens to send")
    if not given.ask:
        print("nothing was asked; to ask: --ask")
        return None
    if new:
        connection = Endpoint(
            given.endpoint,
            api_key_variable=given.api_key_variable,
            timeout=given.timeout,
            connections=given.concurrency,
        )
        with connection as endpoint:
            writer.ask(endpoint, new, given.concurrency)
    return writer.pairs(chunks)


if __name__ == "__main__":
    main()
