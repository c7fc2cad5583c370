"""Rows whose query is a listwise prompt: the candidates of a query, numbered, and the query behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Unpack

import numpy as np

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.errors import ConfigError
from embedtrain.types import TrainingExample

INSTRUCTION = "Given a query and some relevant documents, rerank the documents that are the most relevant to the query"
# A turn of the user and an empty thought, as the chat template of Qwen3 writes them.
QWEN3 = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
CHATS = {"qwen3": QWEN3, "none": "{prompt}"}


def listwise_prompt(
    query: str, documents: Sequence[str], *, instruction: str = INSTRUCTION, form: str = "code", chat: str = QWEN3
) -> str:
    """The query with numbered documents in front. `form`: as the released code has it, or as the paper prints it."""
    numbered = [f"[{number}] {document}" for number, document in enumerate(documents, 1)]
    if form == "code":
        prompt = "\n".join([f"{instruction}:", "Documents:", *numbered, f"Query: {query}"])
    else:
        prompt = " ".join([f"{instruction}: Documents:", *numbered, f"Search Query: {query}"])
    return chat.format(prompt=prompt)


class ListwisePrompts(Source):
    """The rows of another source, each query with its candidates listed before it.

    E2Rank (arXiv:2510.22733): a query together with its first candidates is embedded as any other text, which is pseudo-relevance
    feedback, and learns to order all candidates by RankNet. A row keeps the candidates that its prompt lists, the first positive
    and negatives, with their scores. They are listed in an order drawn for the row, which says nothing of their scores. The
    prompt is whole and brings no instruction: give the source an empty one (prompts.sources.<name>.query="") and a
    max_query_length that holds the documents.

    rows            the source
    num_documents   in a prompt, at most
    max_words       of each document as it is listed; null: all of it
    task            what the prompt asks for
    form            code: the released code's prompt | paper: the printed one
    chat            template around the prompt: qwen3 | none
    seed            of the order, and of the negatives that are listed
    The others are those of every `Source`; limit and held_out of `rows` choose by the queries themselves.
    """

    def __init__(
        self,
        *,
        rows: Source,
        num_documents: int = 16,
        max_words: int | None = None,
        task: str = INSTRUCTION,
        form: Literal["code", "paper"] = "code",
        chat: Literal["qwen3", "none"] = "qwen3",
        seed: int = 0,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        if form not in ("code", "paper"):
            raise ConfigError(f"form={form!r}: expected code or paper.")
        if chat not in CHATS:
            raise ConfigError(f"chat={chat!r}: expected {' or '.join(CHATS)}.")
        if num_documents < 2 or (max_words is not None and max_words < 1) or seed < 0:
            raise ConfigError(
                f"num_documents={num_documents}, max_words={max_words}, seed={seed}: expected at least 2 documents, at least 1 "
                "word or null, and a seed of 0 or more."
            )
        self.rows = rows
        self.num_documents = num_documents
        self.max_words = max_words
        self.task = task
        self.form = form
        self.chat = CHATS[chat]
        self.seed = seed

    @property
    def where(self) -> str:
        return self.rows.where

    def _mapping(self) -> str:
        return f"query <- a prompt that lists up to {self.num_documents} documents and the query"

    def _count(self) -> int:
        return len(self.rows)

    def _read(self, row: int) -> TrainingExample:
        return self._listed(self.rows[row], row)

    def _read_all(self) -> Iterator[TrainingExample]:
        return (self._listed(example, row) for row, example in enumerate(self.rows))

    def _listed(self, example: TrainingExample, row: int) -> TrainingExample:
        rng = np.random.default_rng((self.seed, row))
        count = min(self.num_documents - 1, len(example.negatives))
        kept = sorted(rng.choice(len(example.negatives), count, replace=False).tolist()) if count else []
        candidates = (example.positives[0], *(example.negatives[number] for number in kept))
        shown = [self._cut(candidates[number]) for number in rng.permutation(len(candidates))]
        scores = example.scores
        if scores is not None:
            scores = (scores[0], *(scores[len(example.positives) + number] for number in kept))
        return replace(
            example,
            query=listwise_prompt(example.query, shown, instruction=self.task, form=self.form, chat=self.chat),
            positives=candidates[:1],
            negatives=candidates[1:],
            scores=scores,
            instruction=None,
        )

    def _cut(self, document: str) -> str:
        return document if self.max_words is None else " ".join(document.split()[: self.max_words])
