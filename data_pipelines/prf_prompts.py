"""Write rows whose query is a listwise prompt, with the scores of a ranker, from a file of ranked candidates.

    python -m data_pipelines.prf_prompts candidates.jsonl --out listwise.jsonl

E2Rank (arXiv:2510.22733): a query together with its first candidates is embedded as any other text, which is pseudo-relevance
feedback, and learns to order all candidates by RankNet. Rows of the input:

    {"query": str, "documents": [str, ...], "ranking": [3, 1, 2]}          documents by number, from 1, the best first
    {"query": str, "documents": [str, ...], "scores": [0.1, 0.9, 0.4]}     or the ranker's scores

and of the output, where the best document is the positive, as in its code:

    {"query": prompt, "positives": [str], "negatives": [str, ...], "scores": [float, ...]}

`--num-documents 0` writes the queries as they are: the rows of the contrastive loss beside it. Train on both by loss=routed:
RankNet with temperature 0.1 on the prompts (the paper weighs it 2), InfoNCE with 0.03 on the queries. The prompts are whole: give
their source an empty prompt (prompts.sources.<name>.query="") and a max_query_length that holds the documents.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from embedtrain.data.sources.lines import LinesFile
from embedtrain.data.sources.listwise import CHATS, INSTRUCTION, listwise_prompt
from embedtrain.errors import DataError


def ranked_row(values: dict[str, Any], where: str, *, num_documents: int, **prompt: str) -> dict[str, Any]:
    """A row of the training format from a row of candidates. Raises DataError for one that is not complete."""
    query, documents = values.get("query"), values.get("documents")
    if not isinstance(query, str) or not isinstance(documents, list) or len(documents) < 2:
        raise DataError(f"{where}: expected a query and at least 2 documents, got {str(values)[:80]!r}.")
    scores = _scores(values, len(documents), where)
    order = sorted(range(len(documents)), key=lambda number: -scores[number])  # stable: the first of equals
    prompt = {**prompt, **({"instruction": values["instruction"]} if values.get("instruction") else {})}
    return {
        "query": listwise_prompt(query, documents[:num_documents], **prompt) if num_documents else query,
        "positives": [documents[order[0]]],
        "negatives": [documents[number] for number in order[1:]],
        "scores": [scores[number] for number in order],
    }


def _scores(values: dict[str, Any], count: int, where: str) -> list[float]:
    """The ranker's scores; of a ranking, the number of documents that each is above."""
    ranking, scores = values.get("ranking"), values.get("scores")
    if scores is not None:
        if not isinstance(scores, list) or len(scores) != count:
            raise DataError(f"{where}: expected {count} scores, one for each document, got {str(scores)[:80]!r}.")
        return [float(score) for score in scores]
    if not isinstance(ranking, list) or sorted(ranking) != list(range(1, count + 1)):
        raise DataError(
            f"{where}: expected ranking, the numbers 1 to {count} with the best document first, or scores; got {ranking!r}."
        )
    return [float(count - 1 - ranking.index(number)) for number in range(1, count + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", help="JSONL or JSONL.gz of queries with ranked documents")
    parser.add_argument("--out", required=True, type=Path, help="JSONL to write")
    parser.add_argument("--num-documents", type=int, default=20, help="documents in a prompt; 0: the query alone")
    parser.add_argument("--instruction", default=INSTRUCTION, help="the task, for rows that bring none")
    parser.add_argument(
        "--form", choices=("code", "paper"), default="code", help="the released code's prompt, or the paper's"
    )
    parser.add_argument("--chat", choices=tuple(CHATS), default="qwen3", help="chat template around the prompt")
    given = parser.parse_args()
    prompt = {
        "instruction": given.instruction,
        "form": given.form,
        "chat": CHATS[given.chat],
    }
    try:
        lines = LinesFile(Path(given.candidates))
        rows = [
            ranked_row(lines.json(row), lines.where(row), num_documents=given.num_documents, **prompt)
            for row in range(len(lines))
        ]
    except DataError as error:
        sys.exit(f"error: {error}")
    given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{given.out}: {len(rows):,} rows")


if __name__ == "__main__":
    main()
