"""A language model is asked whether a candidate answers the query."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import xxhash
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.filters.answers import Answers
from embedtrain.mining.filters.endpoint import Endpoint
from embedtrain.mining.records import Candidates, MiningData

log = logging.getLogger("embedtrain")

PROMPT = """{instruction}

Query: {query}

Document: {document}

Does the document answer the query, or is it what the query asks for? Reply with one word: yes or no."""

BYTES_PER_TOKEN = 4  # of English; other languages have 2 to 4
_PLACES = re.compile(r"\{(instruction|query|document)\}")
_VERDICT = re.compile(r"\W*(?:answer\W+)?(yes|no)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_SAY_EVERY = 1000  # questions


class Question(NamedTuple):
    """Of one candidate."""

    row: int
    column: int
    prompt: str
    key: str  # hash of what is asked, and of whom


class Judge:
    """Keeps candidates of which a language model says that they do not answer the query.

    Any OpenAI-compatible endpoint: a service, or vLLM, llama.cpp, Ollama and others on a machine of your own. Each rank asks
    about its own candidates, and only about those that the filters before left: put it last. Replies are kept in `cache` by
    what was asked, so that a mining that starts again, or one with other settings, asks only what is new.

    With dry=true, the default, nothing is asked and everything stays: it says how many questions and about how many tokens it
    would be. A judge errs too: read some of its verdicts in the audit.

    endpoint          up to the version, such as http://localhost:8000/v1
    model             its name there
    api_key_variable  environment variable that holds the key, which is never written anywhere; null: no key is sent
    prompt            the question, with {query}, {document} and, where wanted, {instruction} (empty where the row has none).
                      The reply must begin with yes or no; what is inside <think> does not count
    request           more fields of the request, such as {max_tokens: 512}; null: temperature 0 alone
    cache             folder of replies
    dry               true: count, ask nothing
    max_pairs         questions of this rank in one mining; more are refused before the first is asked. null: no limit
    unparsable        what becomes of a candidate whose reply is neither yes nor no: drop | keep
    concurrency       questions under way at a time, on each rank
    timeout           seconds until a reply must be there; then it is asked again
    """

    def __init__(
        self,
        *,
        endpoint: str,
        model: str,
        api_key_variable: str | None = "OPENAI_API_KEY",
        prompt: str = PROMPT,
        request: Mapping[str, Any] | None = None,
        cache: str = "runs/judge",
        dry: bool = True,
        max_pairs: int | None = None,
        unparsable: Literal["drop", "keep"] = "drop",
        concurrency: int = 8,
        timeout: float = 60.0,
    ) -> None:
        missing = {"query", "document"} - set(_PLACES.findall(prompt))
        if missing:
            raise ConfigError(f"judge.prompt: {{{'} and {'.join(sorted(missing))}}} does not occur in it, but must.")
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"judge.endpoint: expected an address such as http://localhost:8000/v1, got {endpoint!r}."
            )
        for name, value, least in (("max_pairs", max_pairs, 0), ("concurrency", concurrency, 1)):
            if value is not None and value < least:
                raise ConfigError(f"judge.{name}={value}: expected at least {least}.")
        if not timeout > 0:
            raise ConfigError(f"judge.timeout={timeout}: expected seconds above 0.")
        self.endpoint = endpoint
        self.model = model
        self.api_key_variable = api_key_variable
        self.request = {"temperature": 0} | dict(request or {})
        self.cache = Path(cache).expanduser()
        self.dry = dry
        self.max_pairs = max_pairs
        self.unparsable = unparsable
        self.concurrency = concurrency
        self.timeout = timeout
        self._template = _PLACES.split(prompt)  # text, name, text, name, ..., text
        self._answers: Answers | None = None
        self._counts: dict[str, int] = {}

    def prepare(self, data: MiningData, blocks: Sequence[Candidates]) -> None:
        """Counts the questions. Raises ConfigError where they are more than `max_pairs`."""
        self._answers = Answers(self.cache)
        questions = known = size = 0
        for block in blocks:
            for question in self._questions(block):
                questions += 1
                if question.key in self._answers:
                    known += 1
                else:
                    size += len(question.prompt.encode())
        new, tokens = questions - known, size // BYTES_PER_TOKEN
        self._counts = {"questions": questions, "answered before": known, "tokens to ask, about": tokens}
        log.info(
            "judge %s (%s): %d candidates of %s, %d of them answered before: %d questions, about %d tokens.%s",
            self.model, self.endpoint, questions, data.source, known, new, tokens,
            " Nothing is asked and everything stays; to ask, set dry=false." if self.dry else "",
        )  # fmt: skip
        if not self.dry and self.max_pairs is not None and new > self.max_pairs:
            raise ConfigError(
                f"judge.max_pairs={self.max_pairs}: {data.source} has {new:,} questions, about {tokens:,} tokens, and none was "
                "asked. Raise it, lower miner.depth, or put stricter filters before the judge."
            )

    def __call__(self, candidates: Candidates) -> Tensor:
        stays = torch.ones_like(candidates.kept)
        if self.dry:
            return stays
        assert self._answers is not None, "prepare() was not called"
        self._ask(question for question in self._questions(candidates) if question.key not in self._answers)
        for question in self._questions(candidates):
            verdict = _verdict(self._answers[question.key])
            self._counts[verdict] = self._counts.get(verdict, 0) + 1
            stays[question.row, question.column] = verdict == "no" or (
                verdict == "unparsable" and self.unparsable == "keep"
            )
        return stays

    def facts(self) -> dict[str, object]:
        """Questions and verdicts of this rank."""
        return {"endpoint": self.endpoint, "model": self.model, "dry": self.dry, **self._counts}

    def _questions(self, block: Candidates) -> Iterator[Question]:
        """One for each candidate that is still there."""
        data = block.data
        settings = json.dumps([self.model, self.request], sort_keys=True)
        for row, column in torch.nonzero(block.kept).tolist():
            query = int(block.queries[row])
            texts = {
                "instruction": data.instructions[query] or "",
                "query": data.queries[query],
                "document": data.documents[int(block.documents[row, column])],
            }
            parts = (part if number % 2 == 0 else texts[part] for number, part in enumerate(self._template))
            prompt = "".join(parts).strip().encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
            yield Question(row, column, prompt, xxhash.xxh3_128_hexdigest(f"{settings}\n{prompt}".encode()))

    def _ask(self, questions: Iterator[Question]) -> None:
        """Asks several at a time; a reply is on disk as soon as it is there."""
        first = next(questions, None)
        if first is None:
            return
        answers, waiting, asked = self._answers, dict[Future[str], str](), 0
        assert answers is not None
        endpoint = Endpoint(
            self.endpoint,
            api_key_variable=self.api_key_variable,
            timeout=self.timeout,
            connections=self.concurrency,
        )

        def take_replies() -> None:
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                answers.add(waiting[done], done.result())
                del waiting[done]

        with endpoint, ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for question in itertools.chain([first], questions):
                    message = {"role": "user", "content": question.prompt}
                    body = {"model": self.model, "messages": [message], **self.request}
                    waiting[pool.submit(endpoint.ask, body)] = question.key
                    asked += 1
                    if asked % _SAY_EVERY == 0:
                        log.info("judge %s: %d questions asked.", self.model, asked)
                    if len(waiting) >= 2 * self.concurrency:
                        take_replies()
                while waiting:
                    take_replies()
            finally:
                endpoint.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                for done, key in waiting.items():  # after an error: what was answered meanwhile was paid for
                    if not done.cancelled() and done.exception() is None:
                        answers.add(key, done.result())
                answers.close()


def _verdict(reply: str) -> Literal["yes", "no", "unparsable"]:
    """
    >>> [_verdict(reply) for reply in ("No.", "**Yes**, it does", "<think>yes?</think> no", "It depends", "nobody knows")]
    ['no', 'yes', 'no', 'unparsable', 'unparsable']
    """
    found = _VERDICT.match(_THOUGHT.sub("", reply))
    if found is None:
        return "unparsable"
    return "yes" if found[1].lower() == "yes" else "no"
