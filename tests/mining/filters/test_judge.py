"""The judge against an endpoint of our own: what is asked, what is kept, what it costs, and what happens when things break."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from embedtrain.errors import ConfigError, DataError, TrainingError
from embedtrain.mining.filters import endpoint
from embedtrain.mining.filters.answers import Answers
from embedtrain.mining.filters.judge import Judge
from embedtrain.mining.records import Candidates
from tests.mining.filters.tables import part_of, table

KEY = "sk-very-secret"


class Server:
    """Answers chat completions by a function of the prompt: text, or (status, bytes). Notes what it got."""

    def __init__(self, reply: Callable[[str], Any]) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.bodies.append(body)
            self.keys.append(handler.headers.get("authorization"))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            found = self.reply(body["messages"][0]["content"])
        finally:
            with self._lock:
                self._now -= 1
        status, data = found if isinstance(found, tuple) else (200, found)
        if isinstance(data, str):
            data = json.dumps({"choices": [{"message": {"role": "assistant", "content": data}}]}).encode()
        if handler.path != "/v1/chat/completions":
            status, data = 404, b"no such page"
        handler.send_response(status)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def serving(reply: Callable[[str], Any]) -> Iterator[tuple[Server, str]]:
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Http(ThreadingHTTPServer):
        request_queue_size = 64  # or the ninth connection waits a second
        daemon_threads = True

    http = Http(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)


def even_answers(prompt: str) -> str:
    """Documents of even numbers answer."""
    return "Yes." if int(re.search(r"document (\d+)", prompt)[1]) % 2 == 0 else "no"


def judged(judge: Judge, *blocks: Candidates) -> list[torch.Tensor]:
    judge.prepare(blocks[0].data, blocks)
    return [judge(block) for block in blocks]


def settings(url: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"endpoint": url, "model": "small", "cache": str(folder), "dry": False, **more}


def test_candidates_that_answer_go_and_only_what_is_still_there_is_asked(tmp_path: Path) -> None:
    whole = table(0)
    blocks = [part_of(whole, [0, 1, 2]), part_of(whole, list(range(3, 12)))]
    with serving(even_answers) as (server, url):
        judge = Judge(**settings(url, tmp_path))
        found = judged(judge, *blocks)
    wanted = set()
    for block, stays in zip(blocks, found, strict=True):
        for row, column in torch.nonzero(block.kept).tolist():
            document = int(block.documents[row, column])
            assert bool(stays[row, column]) == (document % 2 == 1)
            wanted.add(
                f"Query: {block.data.queries[block.queries[row]]}\n\nDocument: document {document}\n\n"
                "Does the document answer the query, or is it what the query asks for? Reply with one word: yes or no."
            )
    assert sorted(server.prompts) == sorted(wanted)
    assert {json.dumps({**body, "messages": 0}) for body in server.bodies} == {
        json.dumps({"model": "small", "messages": 0, "temperature": 0})
    }
    assert set(server.keys) == {f"Bearer {KEY}"}
    facts = judge.facts()
    assert facts["questions"] == len(wanted) == facts["yes"] + facts["no"]
    assert facts["answered before"] == 0


def test_a_question_is_asked_once(tmp_path: Path) -> None:
    whole = table(0)
    with serving(even_answers) as (server, url):
        first = judged(Judge(**settings(url, tmp_path)), whole)
        asked = len(server.bodies)
        less = part_of(whole, [3, 4])
        judge = Judge(**settings(url, tmp_path))
        again = judged(judge, less)
        assert len(server.bodies) == asked
        assert torch.equal(again[0], first[0][[3, 4]])
        assert judge.facts()["answered before"] == judge.facts()["questions"] == int(less.kept.sum())
        # Another model, another prompt or another request is another question.
        for more in ({"model": "large"}, {"prompt": "{query}: {document}?"}, {"request": {"max_tokens": 5}}):
            judged(Judge(**settings(url, tmp_path) | more), less)
            asked += int(less.kept.sum())
            assert len(server.bodies) == asked
    assert server.bodies[-1]["max_tokens"] == 5


def test_dry_counts_and_asks_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = table(0)
    with serving(even_answers) as (server, url), caplog.at_level(logging.INFO, "embedtrain"):
        judge = Judge(**settings(url, tmp_path, dry=True, max_pairs=0))
        (stays,) = judged(judge, whole)
        assert stays.all()
        assert server.bodies == []
        assert not list(tmp_path.iterdir())
        count = int(whole.kept.sum())
        assert f"{count} questions, about {judge.facts()['tokens to ask, about']} tokens" in caplog.text
        assert "to ask, set dry=false" in caplog.text
        judged(Judge(**settings(url, tmp_path)), whole)
        size = sum(len(prompt) for prompt in server.prompts)
        assert judge.facts()["tokens to ask, about"] == size // 4
        # What is known costs nothing more, and still everything stays.
        assert judged(judge, whole)[0].all()
        assert judge.facts()["tokens to ask, about"] == 0
        assert judge.facts()["answered before"] == count


def test_more_questions_than_allowed_are_refused_before_the_first(tmp_path: Path) -> None:
    whole = table(0)
    count = int(whole.kept.sum())
    with serving(even_answers) as (server, url):
        with pytest.raises(ConfigError, match=rf"judge.max_pairs={count - 1}: things has {count} questions"):
            judged(Judge(**settings(url, tmp_path, max_pairs=count - 1)), whole)
        assert server.bodies == []
        judged(Judge(**settings(url, tmp_path, max_pairs=count)), whole)
        judged(Judge(**settings(url, tmp_path, max_pairs=0)), whole)  # all are known by now


@pytest.mark.parametrize("unparsable", ["drop", "keep"])
def test_replies_that_are_neither_yes_nor_no_are_counted_and_dropped_or_kept(tmp_path: Path, unparsable: str) -> None:
    whole = table(0)
    odd = {1: "It depends.", 3: None, 5: "<think>no, or yes?</think>\n**No**", 7: "nobody knows", 9: "Answer: yes"}

    def reply(prompt: str) -> Any:
        number = int(re.search(r"document (\d+)", prompt)[1])
        if odd.get(number, "") is None:
            return 200, b'{"choices": [{"message": {"content": null}}]}'
        return odd.get(number, "no")

    with serving(reply) as (_, url):
        judge = Judge(**settings(url, tmp_path, unparsable=unparsable))
        (stays,) = judged(judge, whole)
    numbers = whole.documents
    broken = (numbers == 1) | (numbers == 3) | (numbers == 7)
    assert judge.facts()["unparsable"] == int((broken & whole.kept).sum()) > 2
    expected = torch.where(broken, torch.tensor(unparsable == "keep"), numbers != 9)
    assert torch.equal(stays & whole.kept, expected & whole.kept)


def test_instructions_go_where_the_prompt_says_and_texts_are_no_templates(tmp_path: Path) -> None:
    whole = part_of(table(0), [0, 2])
    whole.data.instructions[2] = "Find {query}"
    whole.data.documents[int(whole.documents[0, 0])] = 'a {document} of {"json": 1} \ud800'
    whole.kept[:] = False
    whole.kept[:, 0] = True
    with serving(lambda _: "no") as (server, url):
        judged(Judge(**settings(url, tmp_path)), whole)
    first, second = sorted(server.prompts)
    assert first.startswith("Find {query}\n\nQuery: query 2\n\nDocument: document ")
    assert second.startswith('Query: query 0\n\nDocument: a {document} of {"json": 1} ?\n\n')


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    whole = part_of(table(0), [0, 2, 3])
    failures: dict[str, int] = {}

    def reply(prompt: str) -> Any:
        failures[prompt] = failures.get(prompt, 0) + 1
        return {1: (429, b"slow down"), 2: (503, b"busy")}.get(failures[prompt], "no")

    with serving(reply) as (server, url):
        (stays,) = judged(Judge(**settings(url, tmp_path)), whole)
    assert stays.all()
    assert len(server.bodies) == 3 * int(whole.kept.sum())


def test_a_wait_grows_and_follows_what_the_endpoint_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 60.0)
    waits: list[float] = []
    asking = endpoint.Endpoint("http://127.0.0.1:9/v1", api_key_variable=None, timeout=1, connections=1)
    monkeypatch.setattr(asking._stopped, "wait", lambda seconds: waits.append(seconds))
    with asking, pytest.raises(TrainingError, match=r"no reply after 8 attempts. The last: ConnectError"):
        asking.ask({})
    assert waits == sorted(waits)
    assert len(waits) == 7
    assert 0.7 < waits[0] < 1.3
    assert 45 < waits[-1] <= 60
    for asked, seconds in (("17", 17), ("Wed, 21 Oct 2026 07:28:00 GMT", 0)):
        assert endpoint._retry_after(httpx.Response(429, headers={"retry-after": asked})) == seconds


def test_an_endpoint_that_stays_down_is_named_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    whole = table(0)
    down = threading.Event()

    def reply(prompt: str) -> Any:
        return (500, f"out of order, {KEY}".encode()) if down.is_set() else even_answers(prompt)

    with serving(reply) as (server, url):
        some = part_of(whole, [0, 2, 3])
        judged(Judge(**settings(url, tmp_path)), some)
        down.set()
        with pytest.raises(
            TrainingError, match=rf"{url}/chat/completions: no reply after \d attempts. The last: status 500"
        ) as error:
            judged(Judge(**settings(url, tmp_path)), whole)
        assert KEY not in str(error.value)
        down.clear()
        before = len(server.bodies)
        judged(Judge(**settings(url, tmp_path)), whole)
        assert len(server.bodies) - before == int(whole.kept.sum()) - int(some.kept.sum())


def test_replies_of_the_moment_of_an_error_are_kept(tmp_path: Path) -> None:
    """Three questions under way, one is refused: the other two were paid for."""
    whole = part_of(table(0), [0])
    whole.kept[:] = False
    whole.kept[0, :3] = True
    barrier = threading.Barrier(3)
    bad = whole.data.documents[int(whole.documents[0, 1])]

    def reply(prompt: str) -> Any:
        barrier.wait(timeout=5)
        if f"{bad}\n" in prompt:
            return 400, b"no"
        time.sleep(0.1)
        return "no"

    with serving(reply) as (_, url), pytest.raises(ConfigError):
        judged(Judge(**settings(url, tmp_path)), whole)
    assert len(Answers(tmp_path)) == 2


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refused_question_is_an_error_at_once_and_the_key_is_not_repeated(tmp_path: Path, status: int) -> None:
    with serving(lambda _: (status, f"bad key {KEY}".encode())) as (server, url):
        with pytest.raises(ConfigError, match=rf"refuses the question: status {status}, 'bad key \*\*\*'"):
            judged(Judge(**settings(url, tmp_path, concurrency=1)), table(0))
        assert len(server.bodies) <= 2


@pytest.mark.parametrize("body", [b'{"choices": []}', b"<html>", b"[]", b'"no"', b'{"choices": [{"text": "no"}]}'])
def test_a_server_that_answers_otherwise_is_named(tmp_path: Path, body: bytes) -> None:
    message = rf"chat/completions: expected a chat completion .*{re.escape(body.decode())}.* Is it OpenAI-compatible"
    with serving(lambda _: (200, body)) as (_, url), pytest.raises(TrainingError, match=message):
        judged(Judge(**settings(url, tmp_path)), table(0))


def test_an_endpoint_that_ends_elsewhere_is_refused(tmp_path: Path) -> None:
    with (
        serving(even_answers) as (_, url),
        pytest.raises(ConfigError, match=r"status 404, 'no such page'. Look at endpoint"),
    ):
        judged(Judge(**settings(f"{url}/chat", tmp_path)), table(0))


def test_no_more_questions_are_under_way_than_allowed(tmp_path: Path) -> None:
    def reply(prompt: str) -> str:
        time.sleep(0.005)
        return even_answers(prompt)

    with serving(reply) as (server, url):
        judged(Judge(**settings(url, tmp_path, concurrency=3)), table(0))
    assert 2 <= server.most_at_once <= 3


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(even_answers) as (server, url), caplog.at_level(logging.DEBUG):
        judge = Judge(**settings(url, tmp_path))
        judged(judge, table(0))
        assert KEY not in caplog.text
        assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())
        assert KEY not in json.dumps([judge.facts(), str(vars(judge))])
        judged(Judge(**settings(url, tmp_path, api_key_variable=None, model="open")), table(0))
        assert server.keys[-1] is None
        monkeypatch.delenv("OPENAI_API_KEY")
        judged(Judge(**settings(url, tmp_path)), table(0))  # nothing new, no key needed
        with pytest.raises(ConfigError, match="the environment variable OPENAI_API_KEY is not set"):
            judged(Judge(**settings(url, tmp_path, model="third")), table(0))


def test_a_file_that_a_kill_cut_short_loses_its_last_line(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    answers.add("a", "yes\u2028\u0085and\nmore")
    answers.add("b", "no")
    (path,) = tmp_path.iterdir()
    assert len(Answers(tmp_path)) == 2, "on disk before it is closed"
    answers.close()
    path.write_bytes(path.read_bytes()[:-4])
    again = Answers(tmp_path)
    assert "b" not in again
    assert again["a"] == "yes\u2028\u0085and\nmore"
    again.add("b", "yes")
    again.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert Answers(tmp_path)["b"] == "yes"
    path.write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match=rf"{path.name}:1: not an answer of a judge"):
        Answers(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt": "Is {document} good?"}, r"judge.prompt: {query} does not occur"),
        ({"prompt": "Is it good?"}, r"judge.prompt: {document} and {query} does not occur"),
        ({"endpoint": "localhost:8000"}, "judge.endpoint: expected an address such as"),
        ({"concurrency": 0}, "judge.concurrency=0: expected at least 1"),
        ({"max_pairs": -1}, "judge.max_pairs=-1: expected at least 0"),
        ({"timeout": 0}, "judge.timeout=0: expected seconds above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Judge(**settings("http://localhost:1/v1", tmp_path) | more)
