"""InfoNCE in all its settings against a loop over pairs in float64, and against sentence-transformers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.losses.extra.memory import CrossBatchMemory
from embedtrain.losses.infonce import InfoNCE
from embedtrain.types import EmbeddingBatch
from tests.helpers.batches import aligned_batch, permute_documents, random_batch, with_leaves
from tests.losses import oracle
from tests.losses.settings import infonce

TERMS = [("q2d",), ("d2q",), ("q2d", "d2q"), ("q2d", "q2q", "d2d"), ("q2d", "d2q", "q2q", "d2d")]
HARDNESS = [None, {"alpha": 9.0, "negatives": "all"}, {"alpha": 5.0, "negatives": "hard"}]
MARGINS = [
    None,
    {"absolute": 0.1},
    {"relative": -0.05},
    {"absolute": 0.0, "curated": True},
]
SETTINGS = [
    {"terms": t, "partition": p, "positives": k, "hardness": h, "false_negatives": m}
    for t, p, k, h, m in itertools.product(TERMS, ("joint", "separate"), ("each", "summed"), HARDNESS, MARGINS)
] + [
    {"negatives": "hard_only", "positives": k, "hardness": h, "false_negatives": m}
    for k, h, m in itertools.product(("each", "summed"), HARDNESS, MARGINS)
]


def gradients(batch: EmbeddingBatch, loss: torch.Tensor) -> list[torch.Tensor]:
    wanted = [batch.queries.values, batch.documents.values]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def ragged_batch(seed: int) -> EmbeddingBatch:
    """Few texts and documents, so that there are duplicates of every sort; some queries without hard negatives."""
    return random_batch(
        seed, queries=5, texts=9, contents=10, positives=(1, 2), negatives=(0, 2), known=(0, 1), spread=0.7
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values() if v is not None))
def test_loss_and_gradient_are_those_of_a_loop_over_pairs(settings):
    for seed in (1, 2):
        batch = ragged_batch(seed)
        output = infonce(temperature=0.3, **settings)(batch)
        expected, filtered = oracle.infonce(with_leaves(batch), temperature=0.3, **settings)
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
        if settings["false_negatives"]:
            assert output.metrics["filtered_per_query"].item() * 5 == pytest.approx(filtered)
        reference = with_leaves(batch)
        wanted = gradients(reference, oracle.infonce(reference, temperature=0.3, **settings)[0])
        for found, expected_gradient in zip(gradients(batch, output.loss), wanted, strict=True):
            torch.testing.assert_close(found, expected_gradient, rtol=1e-9, atol=1e-12)


def test_the_batches_of_the_oracle_hold_every_case():
    kinds = set()
    for seed in (1, 2):
        slow = oracle.Kinds(ragged_batch(seed).relation)
        kinds |= {slow.kind(q, d) for q in range(5) for d in range(slow.num_documents)}
        kinds |= {("positives", len(slow.positives(q))) for q in range(5)}
        kinds |= {"same text"} if len(set(slow.texts)) < 5 else set()
    assert kinds >= {"positive", "negative", "hard negative", "ignore", ("positives", 1), ("positives", 2), "same text"}


@pytest.mark.parametrize("terms", TERMS)
def test_gradients_pass_gradcheck_with_a_learned_temperature(terms):
    batch = ragged_batch(3)

    def loss(queries, documents, log_scale):
        criterion = infonce(temperature=0.3, learn_temperature=True, terms=terms)
        del criterion.temperature.log_scale
        criterion.temperature.log_scale = log_scale
        changed = with_leaves(batch)
        object.__setattr__(changed.queries, "values", queries)
        object.__setattr__(changed.documents, "values", documents)
        return criterion(changed).loss

    log_scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (batch.queries.values, batch.documents.values, log_scale))


def test_a_learned_temperature_gets_the_gradient_of_the_formula():
    batch = ragged_batch(4)
    settings = {"terms": ("q2d", "d2q"), "partition": "separate", "hardness": {"alpha": 9.0}}
    criterion = infonce(temperature=0.2, learn_temperature=True, **settings).double()
    criterion(batch).loss.backward()
    log_scale = torch.tensor(math.log(5), dtype=torch.float64, requires_grad=True)
    expected, _ = oracle.infonce(with_leaves(batch), temperature=torch.exp(-log_scale), **settings)
    expected.backward()
    assert criterion.temperature.log_scale.grad.item() == pytest.approx(log_scale.grad.item(), rel=1e-6)


def test_a_learned_temperature_stays_in_its_range_and_can_come_back():
    criterion = InfoNCE(temperature=0.01, learn_temperature=True)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=1.0)
    with torch.no_grad():
        criterion.temperature.log_scale.fill_(10.0)  # an optimizer step too far
    output = criterion(random_batch(spread=0.1))
    assert output.metrics["temperature"].item() == pytest.approx(0.01)
    output.loss.backward()
    assert criterion.temperature.log_scale.grad.item() > 0  # similar texts all around: a softer softmax is better
    optimizer.step()
    assert criterion.temperature.log_scale.item() < math.log(100)


# -- against sentence-transformers -------------------------------------------------------------------------------------

PEER_TERMS = {"q2d": "query_to_doc", "d2q": "doc_to_query", "q2q": "query_to_query", "d2d": "doc_to_doc"}
PEER_HARDNESS = {"all": "all_negatives", "hard": "hard_negatives"}


@pytest.mark.parametrize(
    "settings",
    [
        {"terms": t, "partition": p, "hardness": h}
        for t, p, h in itertools.product(TERMS, ("joint", "separate"), HARDNESS)
        # the peer has no loss without q2d, no separate one for q2q and d2d, and weighs q2d alone
        if "q2d" in t and (p == "joint" or not {"q2q", "d2d"} & set(t)) and (h is None or t == ("q2d",))
    ],
    ids=str,
)
@pytest.mark.parametrize("hard", [0, 2])
def test_equal_to_sentence_transformers(settings, hard):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    batch = aligned_batch(hard=hard)
    output = infonce(temperature=0.05, **settings)(batch)
    hardness = settings["hardness"]
    peer = losses.MultipleNegativesRankingLoss(
        torch.nn.Identity(),
        scale=20.0,
        directions=tuple(PEER_TERMS[t] for t in settings["terms"]),
        partition_mode={"joint": "joint", "separate": "per_direction"}[settings["partition"]],
        hardness_mode=PEER_HARDNESS[hardness["negatives"]] if hardness else None,
        hardness_strength=hardness["alpha"] if hardness else 0.0,
    )
    other = with_leaves(batch)
    columns = other.documents.values.view(6, 1 + hard, -1).unbind(1)
    expected = peer.compute_loss_from_embeddings([other.queries.values, *columns], None)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found, wanted = gradients(batch, output.loss), gradients(other, expected)
    for side, mine, theirs in zip((batch.queries, batch.documents), found, wanted, strict=True):
        # The peer normalises once more: its gradient has no part along the vector. Ours has it taken away here.
        unit = side.values.detach()
        tangent = mine - (mine * unit).sum(1, keepdim=True) * unit
        torch.testing.assert_close(tangent, theirs, rtol=1e-6, atol=1e-9)


# -- shares, order, precision, edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"terms": TERMS[-1]}, {"negatives": "hard_only"}], ids=str)
def test_slices_of_the_rows_add_up_to_the_whole(settings):
    criterion = infonce(temperature=0.2, false_negatives={"absolute": 0.1}, learn_temperature=True, **settings)
    whole = random_batch(5, queries=7, texts=6, contents=12)
    output = criterion(whole)
    output.loss.backward()
    expected = [whole.queries.values.grad, whole.documents.values.grad, criterion.temperature.log_scale.grad.clone()]
    criterion.zero_grad()
    losses, metrics = [], []
    parts = with_leaves(whole)
    for rows in (slice(0, 3), slice(3, 3), slice(3, 7)):  # a rank may have no query at all
        part = criterion(EmbeddingBatch(parts.queries, parts.documents, parts.relation, rows))
        part.loss.backward()
        losses.append(part.loss.item())
        metrics.append(part.metrics)
    assert sum(losses) == pytest.approx(output.loss.item(), rel=1e-6)
    for name, value in output.metrics.items():
        assert sum(m[name].item() for m in metrics) == pytest.approx(value.item(), rel=1e-6), name
    found = [parts.queries.values.grad, parts.documents.values.grad, criterion.temperature.log_scale.grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{"terms": TERMS[-1]}, {"negatives": "hard_only"}], ids=str)
def test_the_order_of_the_documents_does_not_matter(settings):
    """Positives are found by the relation: PNNPNN and PPNNNN are the same batch."""
    batch = random_batch(6, negatives=(2, 2), positives=(1, 1), known=(0, 0))
    order = torch.cat([torch.nonzero(batch.relation.is_positive), torch.nonzero(~batch.relation.is_positive)]).flatten()
    other = permute_documents(batch, order)
    criterion = infonce(**settings)
    first, second = criterion(batch).loss, criterion(other).loss
    assert first.item() == pytest.approx(second.item(), rel=1e-12)
    torch.testing.assert_close(gradients(batch, first)[1][order], gradients(other, second)[1])


def test_a_duplicate_of_the_positive_does_not_enter_the_denominator():
    """However unequal its embedding is, as under dropout."""
    batch = aligned_batch(hard=0)
    ids = batch.relation.document_ids
    ids[3] = ids[0]  # query 3 brought the document of query 0
    changed = with_leaves(batch)
    changed.documents.values.data[3] = torch.randn(8, dtype=torch.float64)
    output = InfoNCE()(changed)
    assert output.metrics["ignored_per_query"].item() * 6 == 2  # (0, 3) and (3, 0)
    s = batch.queries.values[0] @ changed.documents.values.T / 0.05
    keep = [0, 1, 2, 4, 5]
    alone = EmbeddingBatch(changed.queries, changed.documents, changed.relation, slice(0, 1))
    expected = torch.nn.functional.cross_entropy(s[keep][None], torch.tensor([0])) / 6
    assert InfoNCE()(alone).loss.item() == pytest.approx(expected.item())


def test_curated_hard_negatives_survive_the_filter_unless_asked():
    batch = aligned_batch(hard=1)
    with torch.no_grad():  # the hard negative of query 0 and the positive of query 1 are nearer to query 0 than its own
        batch.documents.values[1] = batch.queries.values[0]
        batch.documents.values[2] = batch.queries.values[0]
    kept = infonce(false_negatives={"absolute": 0.1})(batch)
    every = infonce(false_negatives={"absolute": 0.1, "curated": True})(batch)
    rows = EmbeddingBatch(batch.queries, batch.documents, batch.relation, slice(0, 1))
    gradient = gradients(rows, infonce(false_negatives={"absolute": 0.1})(rows).loss)[1]
    assert gradient[1].norm() > 0
    assert gradient[2].norm() == 0
    assert every.metrics["filtered_per_query"] > kept.metrics["filtered_per_query"]


def test_fp32_inside_whatever_autocast_says():
    batch = random_batch(7, queries=64, dim=64, positives=(1, 1), known=(0, 0), dtype=torch.bfloat16, spread=0.6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = InfoNCE(temperature=0.01)(batch).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert batch.queries.values.grad.dtype == torch.bfloat16
    exact = with_leaves(batch)
    for embeddings in (exact.queries, exact.documents):
        object.__setattr__(embeddings, "values", embeddings.values.double())
    assert loss.item() == pytest.approx(InfoNCE(temperature=0.01)(exact).loss.item(), abs=1e-3)


@pytest.mark.parametrize("partition", ["joint", "separate"])
@pytest.mark.parametrize("positives", ["each", "summed"])
@pytest.mark.parametrize("terms", [("q2d",), TERMS[-1]])
def test_rows_without_any_negative_give_zero_and_no_nan(terms, positives, partition):
    batch = random_batch(8, contents=1, negatives=(0, 0))  # everything is the same document
    output = InfoNCE(terms=terms, positives=positives, partition=partition)(batch)
    output.loss.backward()
    if terms == ("q2d",) and positives == "each":
        assert output.loss.item() == pytest.approx(0)
    for x in (output.loss, *output.metrics.values(), batch.queries.values.grad, batch.documents.values.grad):
        assert torch.isfinite(x).all()


def test_a_query_without_a_positive_costs_nothing():
    batch = random_batch(9, positives=(0, 1), negatives=(1, 2))
    assert (torch.bincount(batch.relation.owner[batch.relation.is_positive], minlength=6) == 0).any()
    for positives in ("each", "summed"):
        expected, _ = oracle.infonce(with_leaves(batch), positives=positives)
        assert InfoNCE(positives=positives)(batch).loss.item() == pytest.approx(expected.item())


def test_a_non_finite_embedding_shows_in_the_loss():
    batch = with_leaves(random_batch())
    batch.documents.values.data[2] = math.nan
    assert not torch.isfinite(InfoNCE()(batch).loss)


def test_metrics_by_hand():
    batch = aligned_batch(hard=0, queries=3, dim=3)
    with torch.no_grad():
        batch.queries.values.copy_(torch.eye(3))
        batch.documents.values.copy_(torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, 1.0], [0.0, 0.6, 0.8]]))
    metrics = InfoNCE()(batch).metrics
    # similarities: .8 0 0 | .6 0 .6 | 0 1 .8 -> only query 0 prefers its own document
    assert metrics["accuracy"].item() == pytest.approx(1 / 3)
    assert metrics["positive_similarity"].item() == pytest.approx((0.8 + 0 + 0.8) / 3)
    assert metrics["hardest_negative_similarity"].item() == pytest.approx((0 + 0.6 + 1) / 3)
    assert metrics["ignored_per_query"].item() == 0
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "loss.temperature: expected a number above 0, got 0"),
        ({"temperature": 2.0, "learn_temperature": True}, "loss.temperature: a learned temperature stays within"),
        ({"terms": []}, "loss.terms: expected distinct names out of q2d, d2q, q2q, d2d"),
        ({"terms": ["q2d", "q2p"]}, "q2p"),
        ({"partition": "both"}, "loss.partition: expected joint or separate, got 'both'"),
        ({"negatives": "none"}, "loss.negatives"),
        ({"positives": "all"}, "loss.positives"),
        ({"negatives": "hard_only", "terms": ["q2d", "d2q"]}, "Use terms: \\[q2d\\]"),
        ({"focal": -1}, "loss.focal"),
        ({"hardness": {"alpha": -1}}, "loss.modifiers.hardness.alpha"),
        ({"hardness": {"alpha": 1, "negatives": "some"}}, "loss.modifiers.hardness.negatives"),
        ({"false_negatives": {}}, "exactly one of absolute and relative"),
        ({"false_negatives": {"absolute": 0.1, "relative": 0.1}}, "exactly one of absolute and relative"),
        ({"guide": {"teacher": "guide", "absolute": None}}, "exactly one of absolute, relative and threshold"),
        ({"scope": "all"}, "loss.modifiers.scope.of: expected own, others or none, got 'all'"),
        ({"near": -0.1}, "loss.modifiers.multi_similarity.epsilon: -0.1"),
        ({"hardest": 0}, "loss.modifiers.hardest.k: expected at least 1 negative, got 0"),
        ({"views": {"sparse": 1.0}, "extra": {"memory": CrossBatchMemory(size=3)}}, "loss.extra: memory add to the"),
    ],
)
def test_bad_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        infonce(**settings)
