"""Every loss that has a YAML, through a real transformer: ranks x cached chunks x chunk sizes x packing.

Against one process on the whole batch by plain autograd on the padded model. Norm ratio and cosine: the ratio alone misses a
gather without remote gradients, the cosine alone a factor of the number of ranks.

    make parity        writes the table, a row for each loss, to docs/parity.md

EMBEDTRAIN_PARITY_LOSSES=gist,unime looks at these alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from embedtrain import distributed
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.config.build import build
from embedtrain.config.compose import ROOT, compose_config
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.losses import prepare
from embedtrain.pooling.gaussian import GaussianPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.training.step import ContrastiveStep, mix
from embedtrain.types import (
    EmbeddingBatch,
    Embeddings,
    RaggedTokens,
    Relation,
    TeacherInput,
    TokenBatch,
    needs_of,
    text_id,
)
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks

# The fixture computes the whole matrix, once for the file: on a busy machine of two cores in more than the usual five minutes.
pytestmark = pytest.mark.timeout(1000)

ASKED = [name for name in os.environ.get("EMBEDTRAIN_PARITY_LOSSES", "").split(",") if name]
LOSSES = ASKED or sorted(path.stem for path in (ROOT / "configs" / "loss").glob("*.yaml"))
KERNELS = ("ragged", "padded")
MECHANICS = {  # name -> (cached share, tokens of a chunk): chunks of one text, of about three, of all
    "plain": (0.0, 60),
    "cached, chunks of 1": (1.0, 1),
    "cached, chunks of 3": (1.0, 36),
    "cached, one chunk": (1.0, 100_000),
    "half cached": (0.5, 36),
}
WORLDS = (1, 2, 4)
ON_FOUR_RANKS = [("ragged", "plain"), ("ragged", "half cached")]  # what four ranks could break that two do not
QUERIES = 8


DIM = 32  # of the tiny model, and of its teachers


class FixedTeacher:
    """Vectors that belong to the text, as a store has them."""

    dim = DIM

    def prepare(self, relation: Relation) -> TeacherInput:
        return TeacherInput(self._vectors(relation.query_ids), self._vectors(relation.document_ids))

    def embed(self, inputs: TeacherInput) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs.queries, inputs.documents

    def _vectors(self, ids: torch.Tensor) -> torch.Tensor:
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(i % 2**31)) for i in ids.tolist()]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def build_loss(name: str) -> torch.nn.Module:
    """The YAML as it is, but for sizes, which are those of the tiny model. Drawn weights are the same on every rank."""
    torch.manual_seed(0)
    loss = build(node_of(name))
    prepare(loss, embedding_dim=DIM, teachers=dict.fromkeys(needs_of(loss).teachers, DIM))
    return loss


NODES: dict[str, Any] = {}  # composed once, and told to the ranks


def node_of(name: str) -> dict[str, Any]:
    if name not in NODES:
        NODES[name] = _fitted(compose_config([f"loss={name}"]).config["loss"])
    return NODES[name]


def _fitted(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: SIZES[key] if key in SIZES and isinstance(value, list | float) else _fitted(value)
            for key, value in node.items()
        }
    return node


# What fits the tiny model, and the scores of its batch: half of the positives have more than the threshold.
SIZES = {"dims": [32, 16, 8], "pairs": [[1, 8], [1, None], [2, 16]], "layers": [1, 2], "threshold": 0.2}


class SmallHead(torch.nn.Module):
    """Stands for a sparse head: one vector of other dimensions, used as it is."""

    as_is = True
    output_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanPooling()
        self.linear = torch.nn.Linear(DIM, self.output_dim)

    def forward(self, hidden: torch.Tensor, tokens: RaggedTokens) -> torch.Tensor:
        return self.linear(self.mean(hidden, tokens)).relu()


def token_vectors(dim: int) -> MultiVectorPooling:
    return MultiVectorPooling(hidden_size=DIM, punctuation_ids=(), dim=dim, skip_punctuation=False)


# What a loss asks of the encoder beyond one vector per text, by the name of its YAML.
POOLINGS = {
    "colbert": lambda: token_vectors(DIM),
    "token_groups": lambda: token_vectors(DIM),
    "splade": SmallHead,
    "gaussian": lambda: GaussianPooling(hidden_size=DIM, dim=DIM // 2),
}
VIEWS = {"multi_vector": lambda: token_vectors(8)}  # any other: a small head


@cache
def encoder_of(folder: str, kernel: str, name: str = "infonce", dropout: float = 0.0) -> Encoder:
    """The tiny model with the head and the views that the loss `name` reads; the same weights on every rank."""
    backbone = TransformerBackbone(name=folder, kernel=kernel, dropout=dropout)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(), prompts=Prompts(), max_query_length=64, max_document_length=64, append_eos=False
    )
    needs = needs_of(build_loss(name))
    torch.manual_seed(0)
    encoder = Encoder(
        backbone=backbone,
        pooling=POOLINGS.get(name, MeanPooling)(),
        tokenizer=tokenizer,
        views={view: VIEWS.get(view, SmallHead)() for view in needs.views},
    )
    encoder.read_layers(needs.layers)
    return encoder


def batch_of(first: int, last: int) -> TokenBatch:
    """Queries first .. last - 1 of one fixed batch: ragged, several positives, hard negatives, shared answers."""
    queries, documents, query_ids, document_ids, owner, positive = [], [], [], [], [], []
    known, known_counts = [], []
    for i in range(first, last):
        draw = torch.Generator().manual_seed(i)
        queries.append(_text(draw))
        query_ids.append(text_id(f"query {i}"))
        names = [(f"positive {i // 4 if i % 4 == 3 else i}.{k}", True) for k in range(1 + i % 2)]  # 3 shares with 0
        names += [(f"negative {i}.{k}", False) for k in range(i % 3)]
        for name, is_positive in names:
            documents.append(_text(torch.Generator().manual_seed(text_id(name) % 2**31)))
            document_ids.append(text_id(name))
            owner.append(i - first)
            positive.append(is_positive)
        answers = [text_id(name) for name, is_positive in names if is_positive]
        known += answers
        known_counts.append(len(answers))
    relation = Relation(
        query_ids=torch.tensor(query_ids),
        document_ids=torch.tensor(document_ids),
        owner=torch.tensor(owner),
        is_positive=torch.tensor(positive),
        known_ids=torch.tensor(known),
        known_offsets=torch.tensor([0, *known_counts]).cumsum(0),
        scores=torch.tensor([_score(i) for i in document_ids]),
        labels=torch.tensor([text_id(f"class {i % 3}") for i in range(first, last)]),
        sources=torch.tensor([text_id("some" if i % 2 else "others") for i in range(first, last)]),
    )
    return TokenBatch(RaggedTokens.from_lists(queries), RaggedTokens.from_lists(documents), relation)


def _score(document_id: int) -> float:
    return float(torch.rand((), generator=torch.Generator().manual_seed(document_id % 2**31)))


def _text(draw: torch.Generator) -> list[int]:
    length = int(torch.randint(3, 24, (), generator=draw))
    return torch.randint(1000, 20_000, (length,), generator=draw).tolist()


def zero_or(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def flat(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.detach().double().flatten() for gradient in gradients])


def reference(folder: str, name: str) -> tuple[float, torch.Tensor]:
    encoder, loss, batch = encoder_of(folder, "padded", name), build_loss(name), batch_of(0, QUERIES)
    encoder.train()
    embeddings = encoder(RaggedTokens.cat([batch.queries, batch.documents]))
    q, d = embeddings.select(torch.arange(QUERIES)), embeddings.select(torch.arange(QUERIES, len(embeddings)))
    whole = EmbeddingBatch(q, d, batch.relation, slice(0, QUERIES), seed=mix(0, 0, 0))
    teachers = {name: FixedTeacher() for name in needs_of(loss).teachers}
    taught = {name: t.embed(t.prepare(batch.relation)) for name, t in teachers.items()}
    value = loss(
        replace(
            whole,
            teachers={
                name: replace(whole, queries=Embeddings(tq), documents=Embeddings(td))
                for name, (tq, td) in taught.items()
            },
        )
    ).loss
    parameters = [p for m in (encoder, loss) for p in m.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return value.item(), flat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])


@dataclass(frozen=True)
class Found:
    """What a rank got, against one process on the whole batch. Small: gradients of all cases together would be gigabytes."""

    loss: float
    expected_loss: float
    expected_norm: float
    ratio: float  # of the norms
    cosine: float
    error: float  # |g - g0| / |g0|
    digest: str  # of the gradient's bytes


def compare(value: float, gradient: torch.Tensor, expected_loss: float, expected: torch.Tensor) -> Found:
    norm = float(expected.norm())
    return Found(
        loss=value,
        expected_loss=expected_loss,
        expected_norm=norm,
        ratio=float(gradient.norm()) / norm,
        cosine=float(torch.dot(gradient, expected) / (gradient.norm() * expected.norm())),
        error=float((gradient - expected).norm()) / norm,
        digest=xxhash.xxh3_128_hexdigest(gradient.numpy().tobytes()),
    )


def steps_of_rank(folder: str, nodes: dict[str, Any]) -> dict[tuple[str, str, str], Found]:
    """What a rank of the group at hand gets: (loss, kernel, mechanics) -> loss and gradient, compared."""
    NODES.update(nodes)
    torch.set_num_threads(1)
    world, rank = distributed.world_size(), distributed.rank()
    edges = [round(QUERIES * r / world) for r in range(world + 1)]
    if world > 1:
        edges[1:-1] = [edge + 1 for edge in edges[1:-1]]  # uneven slices
    batch = batch_of(edges[rank], edges[rank + 1])
    cases = ON_FOUR_RANKS if world == 4 else [(kernel, mechanics) for kernel in KERNELS for mechanics in MECHANICS]
    found = {}
    for name in LOSSES:
        expected = reference(folder, name)
        for kernel, mechanics in cases:
            encoder, loss = encoder_of(folder, kernel, name).train(), build_loss(name)
            teachers = {teacher: FixedTeacher() for teacher in needs_of(loss).teachers}
            batch = replace(batch, teachers={k: t.prepare(batch.relation) for k, t in teachers.items()})
            cached_share, chunk_tokens = MECHANICS[mechanics]
            step = ContrastiveStep(
                encoder=encoder, loss=loss, chunk_tokens=chunk_tokens, cached_share=cached_share, teachers=teachers
            )
            for parameter in step.parameters:
                parameter.grad = None
            value = step([batch], 0).loss
            found[name, kernel, mechanics] = compare(value, flat([zero_or(p) for p in step.parameters]), *expected)
        encoder_of.cache_clear()  # a model for each loss and kernel would fill the memory
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_model_dir("bert", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def matrix(folder) -> dict[int, list[dict[tuple[str, str, str], Found]]]:
    nodes = {name: node_of(name) for name in LOSSES}
    return {world: run_ranks(steps_of_rank, world, folder, nodes, timeout=900) for world in WORLDS}


@pytest.fixture(scope="module")
def errors() -> Iterator[dict[str, dict[str, float]]]:
    """Relative errors by loss and by mechanics; written down at the end where that is asked for."""
    found: dict[str, dict[str, float]] = {}
    yield found
    if path := os.environ.get("EMBEDTRAIN_PARITY_TABLE"):
        Path(path).write_text(page(found), encoding="utf-8")


def page(errors: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in errors.values() for column in row))
    lines = ["| loss | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in errors.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.1e}" if c in row else "" for c in columns) + " |")
    return PAGE.format(ranks=", ".join(map(str, WORLDS)), table="\n".join(lines))


PAGE = """# Every loss, any mechanics, one gradient

Written by `make parity`. Each cell is the relative error of the gradient of all parameters, against plain autograd of one process
on the whole batch and the padded model: |g - g0| / |g0|, fp32, the larger of the ragged and the padded kernel. Columns: ranks
({ranks}; gloo, uneven slices) and how chunks of texts are kept or computed again (GradCache).

{table}
"""


@pytest.mark.parametrize("name", LOSSES)
def test_any_mechanics_give_the_gradient_of_one_process_on_the_whole_batch(matrix, name, errors):
    errors[name] = {}
    for world, ranks in matrix.items():
        for rank in ranks:
            for (loss, kernel, mechanics), found in rank.items():
                if loss != name:
                    continue
                where = f"{world} ranks, {kernel}, {mechanics}"
                assert found.expected_norm > 0
                assert found.loss == pytest.approx(found.expected_loss, rel=1e-4), where
                assert found.ratio == pytest.approx(1, abs=1e-4), where
                assert found.cosine > 0.9999, where
                column = f"{world}: {mechanics}"
                errors[name][column] = max(errors[name].get(column, 0.0), found.error)


def test_all_ranks_hold_the_same_gradient(matrix):
    for ranks in matrix.values():
        for key, found in ranks[0].items():
            assert all((other[key].digest, other[key].loss) == (found.digest, found.loss) for other in ranks)


@pytest.mark.parametrize("world", [1, 2])
def test_dropout_is_replayed_by_cached_chunks_to_the_bit(folder, world):
    for found in run_ranks(dropout_of_rank, world, folder):
        for kernel, (plain, cached) in found.items():
            assert torch.equal(plain, cached), kernel


def dropout_of_rank(folder: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    torch.set_num_threads(1)
    rank = distributed.rank()
    found = {}
    for kernel in KERNELS:
        gradients = []
        for cached_share in (0.0, 1.0):
            encoder, loss = encoder_of(folder, kernel, "infonce", 0.2), build_loss("infonce")
            encoder.train()
            encoder.zero_grad()
            step = ContrastiveStep(encoder=encoder, loss=loss, chunk_tokens=36, cached_share=cached_share, seed=3)
            step([batch_of(4 * rank, 4 * rank + 4)], 5)
            gradients.append(flat([p.grad for p in step.parameters]))
        found[kernel] = (gradients[0], gradients[1])
    return found


def test_the_losses_are_found():
    assert ASKED or {"infonce", "hardness_weighted", "matryoshka"} <= set(LOSSES)
