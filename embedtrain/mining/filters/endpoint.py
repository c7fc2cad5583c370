"""An OpenAI-compatible endpoint: one question, one reply."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from embedtrain.errors import ConfigError, TrainingError

log = logging.getLogger("embedtrain")

ATTEMPTS = 8
LONGEST_WAIT = 60.0  # seconds; all waits together are two minutes, which outlasts a limit per minute


class Endpoint:
    """Asks <url>/chat/completions. May be called by several threads.

    url               up to the version: https://api.openai.com/v1, http://localhost:8000/v1
    api_key_variable  environment variable that holds the key; null: the endpoint wants none
    timeout           seconds until a reply must be there
    """

    def __init__(self, url: str, *, api_key_variable: str | None, timeout: float, connections: int) -> None:
        self.url = f"{url.rstrip('/')}/chat/completions"
        self._key = _key(api_key_variable)
        self._client = httpx.Client(
            timeout=timeout,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=connections),
        )
        self._stopped = threading.Event()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stop(self) -> None:
        """Questions that wait to be asked again give up."""
        self._stopped.set()

    def ask(self, body: Mapping[str, Any]) -> str:
        """The reply's text, "" where it has none.

        What may pass (no connection, no time, 408, 429, 5xx) is tried again, each time after a longer wait. Raises TrainingError
        when it did not, ConfigError for a request that the endpoint refuses.
        """
        for attempt in range(ATTEMPTS):
            try:
                response = self._client.post(self.url, json=dict(body))
            except httpx.TransportError as error:
                problem, wait = self._without_key(f"{type(error).__name__}: {error}"), 0.0
            else:
                if response.is_success:
                    return self._text(response)
                problem, wait = self._said(response), _retry_after(response)
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise ConfigError(
                        f"{self.url} refuses the question: {problem}. Look at endpoint, model, request and the key."
                    )
            if attempt + 1 < ATTEMPTS:
                wait = min(LONGEST_WAIT, max(wait, 2.0**attempt * random.uniform(0.75, 1.25)))
                log.warning("%s: %s. Trying again in %.0f s.", self.url, problem, wait)
                if self._stopped.wait(wait):
                    break
        raise TrainingError(
            f"{self.url}: no reply after {attempt + 1} attempts. The last: {problem}. Replies so far are kept; start again when "
            "the endpoint is up, or lower concurrency."
        )

    def _text(self, response: httpx.Response) -> str:
        try:
            return str(response.json()["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError):
            raise TrainingError(
                f"{self.url}: expected a chat completion (choices[0].message.content), got {self._said(response)}. Is it "
                "OpenAI-compatible? The endpoint ends where /chat/completions begins, mostly in /v1."
            ) from None

    def _said(self, response: httpx.Response) -> str:
        """Status and text for messages."""
        return f"status {response.status_code}, {self._without_key(response.text)[:300]!r}"

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key, and a message goes to the log."""
        return text if self._key is None else text.replace(self._key, "***")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"judge.api_key_variable: the environment variable {variable} is not set. Export it, or set api_key_variable to null "
            "for an endpoint that wants no key."
        )
    return key


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the endpoint asks to wait; 0 where it names none, or a date."""
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
