"""Every list loss against a loop over candidates, and against sentence-transformers, allRank's and CoDiEmb's definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.ranking.cosent import CoSENT
from embedtrain.losses.ranking.lambda_loss import LambdaLoss
from embedtrain.losses.ranking.listnet import ListNet
from embedtrain.losses.ranking.lists import Lists
from embedtrain.losses.ranking.pearson import Pearson
from embedtrain.losses.ranking.pro import PRO
from embedtrain.losses.ranking.rank_kl import RankKL, places
from embedtrain.losses.ranking.ranknet import RankNet
from embedtrain.types import EmbeddingBatch, Needs, needs_of
from tests.helpers.batches import aligned_batch, permute_documents, random_batch, with_leaves
from tests.losses.ranking.batches import assert_same, assert_shares_add_up, graded_batch, gradients, pairs_of

# Ragged, with ties, with queries of one candidate, and one without candidates at all.
BATCHES = [
    graded_batch(1),
    graded_batch(4, levels=3, queries=7),
    graded_batch(2, levels=2, positives=(0, 1), negatives=(0, 4), queries=8),
]
Candidates = tuple[list[Tensor], list[float]]  # similarities, scores


def candidates(batch: EmbeddingBatch, over: str) -> list[Candidates]:
    """Of each query, or of the batch."""
    owner, scores = batch.relation.owner.tolist(), batch.relation.scores.tolist()
    similar = [batch.queries.values[q] @ batch.documents.values[d] for d, q in enumerate(owner)]
    if over == "batch":
        return [(similar, scores)]
    return [
        (
            [similar[d] for d, q in enumerate(owner) if q == query],
            [scores[d] for d, q in enumerate(owner) if q == query],
        )
        for query in range(batch.relation.num_queries)
    ]


def has_order(found: Candidates) -> bool:
    return len(set(found[1])) > 1


# -- one list, as the papers write it ----------------------------------------------------------------------------------


def ranknet(s: list[Tensor], y: list[float], *, temperature: float = 0.1) -> list[Tensor]:
    n = range(len(s))
    return [torch.log(1 + torch.exp((s[j] - s[i]) / temperature)) for i in n for j in n if y[i] > y[j]]


def lambda_loss(
    s: list[Tensor], y: list[float], *, temperature=0.1, weighting="ndcg_loss2++", mu=10.0, top_k=None
) -> list[Tensor]:
    by_similarity = sorted(range(len(s)), key=lambda i: -s[i].item())
    rank = {i: place + 1 for place, i in enumerate(by_similarity)}

    def discount(place: int) -> float:
        return math.log2(1 + place)

    best = sum((2**v - 1) / discount(r + 1) for r, v in enumerate(sorted(y, reverse=True)[:top_k]))
    terms = []
    for i in range(len(s)):
        for j in range(len(s)):
            if y[i] <= y[j] or (top_k is not None and min(rank[i], rank[j]) > top_k):
                continue
            apart = abs(rank[i] - rank[j])
            rho = abs(1 / discount(rank[i]) - 1 / discount(rank[j]))
            delta = abs(1 / discount(apart) - 1 / discount(apart + 1))
            weight = {"lambda_rank": rho, "ndcg_loss2": delta, "ndcg_loss2++": rho + mu * delta}[weighting]
            weight *= abs((2 ** y[i] - 1) - (2 ** y[j] - 1)) / best
            terms.append(weight * -torch.log2(torch.sigmoid((s[i] - s[j]) / temperature)))
    return terms


def softmax(values: list) -> list[Tensor]:
    e = [torch.exp(torch.as_tensor(v, dtype=torch.float64)) for v in values]
    return [x / sum(e) for x in e]


def listnet(s: list[Tensor], y: list[float], *, temperature=0.05, score_temperature=1.0) -> Tensor:
    target, student = softmax([v / score_temperature for v in y]), softmax([v / temperature for v in s])
    return -sum(t * torch.log(p) for t, p in zip(target, student, strict=True))


def rank_kl(s: list[Tensor], y: list[float], *, temperature=0.05, divide_by_length=True) -> Tensor:
    n = len(s)
    rank = [(n - 1 - (place - 1)) / (n - 1) for place in scipy.stats.rankdata([-v for v in y], method="average")]
    target, student = softmax([r / temperature for r in rank]), softmax([v / temperature for v in s])
    divergence = sum(t * torch.log(t / p) for t, p in zip(target, student, strict=True))
    return divergence / n if divide_by_length else divergence


def pearson(s: list[Tensor], y: list[float]) -> Tensor:
    mean_s, mean_y = sum(s) / len(s), sum(y) / len(y)
    together = sum((a - mean_s) * (b - mean_y) for a, b in zip(s, y, strict=True))
    return 1 - together / (sum((a - mean_s) ** 2 for a in s) * sum((b - mean_y) ** 2 for b in y)).sqrt()


def pro(s: list[Tensor], y: list[float], *, temperature=0.05, steps="mean") -> Tensor:
    losses = []
    for k in range(len(s)):
        below = [j for j in range(len(s)) if y[j] < y[k]]
        if not below:
            continue
        top = torch.exp(s[k] / temperature * max(y[k] - y[j] for j in below))
        losses.append(-torch.log(top / (top + sum(torch.exp(s[j] / temperature * (y[k] - y[j])) for j in below))))
    return sum(losses) / len(losses) if steps == "mean" else sum(losses)


def of_lists(one: Callable, **keys) -> Callable[..., Callable[[EmbeddingBatch], Tensor]]:
    """The mean over lists; those without order add nothing."""

    def reference(over: str, **settings) -> Callable[[EmbeddingBatch], Tensor]:
        def value(batch: EmbeddingBatch) -> Tensor:
            lists = candidates(batch, over)
            return sum(one(*found, **settings) for found in lists if has_order(found)) / len(lists)

        return value

    return reference


def of_pairs(one: Callable) -> Callable[..., Callable[[EmbeddingBatch], Tensor]]:
    def reference(pairs: str, **settings) -> Callable[[EmbeddingBatch], Tensor]:
        def value(batch: EmbeddingBatch) -> Tensor:
            lists = [one(*found, **settings) for found in candidates(batch, "query")]
            return sum(sum(terms) for terms in lists) / (sum(map(len, lists)) if pairs == "mean" else len(lists))

        return value

    return reference


CASES = (
    [
        (RankNet, {"pairs": p, "temperature": t}, of_pairs(ranknet)(p, temperature=t))
        for p in ("mean", "sum")
        for t in (0.1, 1.0)
    ]
    + [
        (LambdaLoss, {"pairs": p, **s}, of_pairs(lambda_loss)(p, **s))
        for p in ("mean", "sum")
        for s in (
            {"weighting": "lambda_rank"},
            {"weighting": "ndcg_loss2", "temperature": 1.0},
            {"weighting": "ndcg_loss2++", "mu": 5.0},
            {"top_k": 1},
            {"top_k": 2, "weighting": "lambda_rank"},
        )
    ]
    + [
        (ListNet, s, of_lists(listnet)("query", **s))
        for s in ({}, {"temperature": 0.5}, {"score_temperature": 0.1, "temperature": 1.0})
    ]
    + [
        (RankKL, {"over": o, **s}, of_lists(rank_kl)(o, **s))
        for o in ("batch", "query")
        for s in ({}, {"temperature": 0.5, "divide_by_length": False})
    ]
    + [(Pearson, {"over": o}, of_lists(pearson)(o)) for o in ("batch", "query")]
    + [
        (PRO, {"over": o, **s}, of_lists(pro)(o, **s))
        for o in ("batch", "query")
        for s in ({}, {"temperature": 1.0, "steps": "sum"})
    ]
)
KINDS = [RankNet, LambdaLoss, ListNet, RankKL, Pearson, PRO]


@pytest.mark.parametrize(("kind", "settings_", "reference"), CASES, ids=lambda c: getattr(c, "__name__", str(c)))
@pytest.mark.parametrize("batch", BATCHES, ids=["distinct", "ties", "sparse"])
def test_loss_and_gradient_are_those_of_a_loop_over_candidates(kind, settings_, reference, batch):
    loss = kind(**settings_)
    assert_same(batch, lambda b: loss(b).loss, reference)


@pytest.mark.parametrize(("kind", "settings_", "reference"), CASES, ids=lambda c: getattr(c, "__name__", str(c)))
def test_shares_of_ranks_add_up(kind, settings_, reference):
    for batch in BATCHES:
        assert_shares_add_up(batch, kind(**settings_))


def test_the_batches_hold_every_case():
    found = [c for batch in BATCHES for c in candidates(batch, "query")]
    lengths = {len(s) for s, _ in found}
    assert {0, 1, 2, 3} <= lengths
    assert any(len(y) > 1 and len(set(y)) == 1 for _, y in found)
    assert any(1 < len(set(y)) < len(y) for _, y in found)


# -- against sentence-transformers -------------------------------------------------------------------------------------


class Answers:
    """In the place of a cross-encoder: says the similarities that it is asked for, whatever the texts."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, similarities: Tensor, temperature: float):
        self.logits = similarities / temperature

    def preprocess(self, pairs: list[tuple[str, str]], **_) -> dict[str, Tensor]:
        return {"numbers": torch.tensor([int(document) for _, document in pairs])}

    def __call__(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.logits[tokens["numbers"]]}


def peer_loss(batch: EmbeddingBatch, make: Callable, temperature: float) -> Tensor:
    owner = batch.relation.owner.tolist()
    similar = (batch.queries.values[batch.relation.owner] * batch.documents.values).sum(1)
    criterion = make(Answers(similar, temperature))
    documents = [[str(d) for d, o in enumerate(owner) if o == q] for q in range(batch.relation.num_queries)]
    labels = [batch.relation.scores[[int(d) for d in names]] for names in documents]
    return criterion([["query"] * len(documents), documents], labels)


@pytest.mark.parametrize(
    ("kind", "settings_", "peer", "options"),
    [
        (RankNet, {}, "RankNetLoss", {"reduction_log": "natural"}),
        (ListNet, {}, "ListNetLoss", {}),
        (LambdaLoss, {"weighting": "ndcg_loss2"}, "LambdaLoss", {"weighting_scheme": "NDCGLoss2Scheme"}),
        (LambdaLoss, {"weighting": "ndcg_loss2++"}, "LambdaLoss", {"weighting_scheme": "NDCGLoss2PPScheme"}),
        (LambdaLoss, {"weighting": "lambda_rank"}, "LambdaLoss", {"weighting_scheme": "LambdaRankScheme"}),
        (LambdaLoss, {"top_k": 2}, "LambdaLoss", {"weighting_scheme": "NDCGLoss2PPScheme", "k": 2}),
    ],
    ids=str,
)
def test_equal_to_sentence_transformers(kind, settings_, peer, options):
    """At temperature 1, since it computes in fp32: its rounding grows with the logits."""
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    options = dict(options)
    if "weighting_scheme" in options:
        module = pytest.importorskip("sentence_transformers.cross_encoder.losses.lambda_loss")
        options["weighting_scheme"] = getattr(module, options["weighting_scheme"])()
    settings_ = {**settings_, "temperature": 1.0} | ({} if kind is ListNet else {"pairs": "mean"})
    batch = graded_batch(5, negatives=(1, 3))  # scores all differ: a list without order is 0 here, and not there

    def make(answers: Answers) -> Callable:
        return getattr(losses, peer)(answers, **options)

    assert_same(batch, lambda b: kind(**settings_)(b).loss, lambda b: peer_loss(b, make, 1.0), rtol=1e-6, atol=1e-7)


# -- properties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 5), order=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_documents_does_not_count(kind, seed, order):
    batch = graded_batch(seed, levels=4)
    permutation = torch.randperm(batch.relation.num_documents, generator=torch.Generator().manual_seed(order))
    mixed = permute_documents(batch, permutation)
    torch.testing.assert_close(kind()(mixed).loss, kind()(batch).loss, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", [RankNet, RankKL])
@given(seed=st.integers(0, 5), factor=st.floats(0.01, 100), offset=st.floats(-50, 50))
@settings(max_examples=10, deadline=None)
def test_ranking_losses_read_the_order_of_the_scores_alone(kind, seed, factor, offset):
    batch = graded_batch(seed, levels=4)
    other = pairs_of(batch, (factor * batch.relation.scores**3 + offset).tolist())
    torch.testing.assert_close(kind()(other).loss, kind()(batch).loss, rtol=1e-12, atol=0)


@given(seed=st.integers(0, 5), factor=st.floats(0.1, 100), offset=st.floats(-5, 5))
@settings(max_examples=10, deadline=None)
def test_pearson_reads_the_scores_up_to_scale_and_offset(seed, factor, offset):
    batch = graded_batch(seed)
    other = pairs_of(batch, (factor * batch.relation.scores + offset).tolist())
    torch.testing.assert_close(Pearson()(other).loss, Pearson()(batch).loss, rtol=1e-9, atol=0)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_equal_scores_share_the_mean_of_their_places(scores):
    longest = max(map(len, scores))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in scores], dtype=torch.float64)
    inside = torch.tensor([[i < len(row) for i in range(longest)] for row in scores])
    found = places(Lists(padded, inside, padded))
    for row, mine in zip(scores, found, strict=True):
        wanted = scipy.stats.rankdata([-v for v in row], method="average") - 1
        assert mine[: len(row)].tolist() == wanted.tolist()


@pytest.mark.parametrize(
    "loss",
    [RankNet(), LambdaLoss(), ListNet(score_temperature=0.1)] + [k(over="query") for k in (RankKL, Pearson, PRO)],
    ids=lambda loss: type(loss).__name__,
)
def test_steps_against_the_gradient_put_the_candidates_in_order(loss):
    batch = graded_batch(7, queries=8, negatives=(2, 4))
    before = agreement(batch)
    for _ in range(80):
        batch = with_leaves(batch)
        found = gradients(batch, loss(batch).loss)
        size = 0.05 / max(gradient.norm() for gradient in found)
        q, d = (
            torch.nn.functional.normalize(x.values - size * g, dim=1).detach()
            for x, g in zip((batch.queries, batch.documents), found, strict=True)
        )
        batch = replace(batch, queries=replace(batch.queries, values=q), documents=replace(batch.documents, values=d))
    assert before < 0.6
    assert agreement(batch) > 0.75


def agreement(batch: EmbeddingBatch) -> float:
    """The share of a query's ordered pairs that are in order."""
    right = [
        float(s[i] > s[j])
        for s, y in candidates(batch, "query")
        for i in range(len(s))
        for j in range(len(s))
        if y[i] > y[j]
    ]
    return sum(right) / len(right)


@pytest.mark.parametrize("kind", [*KINDS, CoSENT])
def test_token_vectors_are_compared_by_maxsim(kind):
    """Two tokens per query, one per document: the sum of two inner products, and so a query of their sum."""
    one = graded_batch(3, levels=4)
    two = with_leaves(graded_batch(4, queries=2 * len(one.queries), dim=one.queries.dim))
    tokens = two.queries.values
    documents = one.documents.values

    def summed(late: bool) -> Tensor:
        values = tokens if late else tokens.view(len(one.queries), 2, -1).sum(1)
        offsets = 2 * torch.arange(len(one.queries) + 1) if late else None
        batch = replace(
            one,
            queries=replace(one.queries, values=values, offsets=offsets),
            documents=replace(one.documents, offsets=torch.arange(len(documents) + 1) if late else None),
        )
        return kind()(batch).loss

    values = [summed(late) for late in (True, False)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(v, [tokens, documents]) for v in values), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_teach_nothing_and_are_counted(kind):
    batch = graded_batch()
    flat = pairs_of(batch, [0.7] * batch.relation.num_documents)
    output = kind()(flat)
    assert output.loss.item() == 0
    assert all(not g.any() for g in gradients(flat, output.loss))
    assert output.metrics["squashed"].item() == 1


def test_each_list_without_order_is_counted():
    batch = graded_batch(4, levels=3, queries=7)
    without = [c for c in candidates(batch, "query") if not has_order(c)]
    assert 0 < len(without) < 7
    assert RankNet()(batch).metrics["squashed"].item() == pytest.approx(len(without) / 7)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_needs_is_said_and_refused_where_missing(kind):
    assert needs_of(kind()) == Needs(scores=True)
    with pytest.raises(ConfigError, match="learns from scores"):
        kind()(random_batch())
    with pytest.raises(DataError, match=r"expected a finite number for every pair"):
        kind()(pairs_of(graded_batch(), [math.nan] * graded_batch().relation.num_documents))


def test_equal_similarities_have_no_correlation_and_no_gradient():
    batch = aligned_batch(hard=0)
    same = batch.queries.values[:1].detach().expand(6, -1)
    batch = replace(
        pairs_of(batch, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        queries=replace(batch.queries, values=same.clone().requires_grad_()),
        documents=replace(batch.documents, values=same.clone().requires_grad_()),
    )
    output = Pearson()(batch)
    assert output.loss.item() == 1
    assert all(not g.any() for g in gradients(batch, output.loss))


@pytest.mark.parametrize("scores", [[-0.5] + [1.0] * 17, [100.0] + [1.0] * 17])
def test_lambda_loss_refuses_scores_that_are_no_grades(scores):
    batch = aligned_batch(hard=2)
    with pytest.raises(DataError, match=r"relevance grades from 0 to 60, got .* use loss=ranknet"):
        LambdaLoss()(pairs_of(batch, scores))


@pytest.mark.parametrize(
    ("kind", "settings_", "message"),
    [
        (RankNet, {"temperature": 0.0}, "loss.temperature"),
        (RankNet, {"pairs": "all"}, "loss.pairs: expected mean or sum"),
        (LambdaLoss, {"weighting": "ndcg"}, "loss.weighting: expected one of lambda_rank"),
        (LambdaLoss, {"mu": -1.0}, "loss.mu"),
        (LambdaLoss, {"top_k": 0}, "loss.top_k"),
        (ListNet, {"temperature": -1.0}, "loss.temperature"),
        (ListNet, {"score_temperature": 0.0}, "loss.score_temperature"),
        (RankKL, {"over": "all"}, "loss.over: expected query or batch"),
        (RankKL, {"temperature": 0.0}, "loss.temperature"),
        (Pearson, {"over": "all"}, "loss.over"),
        (PRO, {"temperature": 0.0}, "loss.temperature"),
        (PRO, {"steps": "all"}, "loss.steps"),
    ],
)
def test_bad_settings_name_the_key(kind, settings_, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings_)
