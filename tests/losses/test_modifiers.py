"""Filters, picks and weights of negatives against a loop over pairs, and GISTEmbed against sentence-transformers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as st_losses

from embedtrain.config.build import build
from embedtrain.config.compose import compose_config
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.modifiers.guide import GuideFilter
from embedtrain.types import NO_LABEL, EmbeddingBatch, Embeddings, needs_of
from tests.helpers.batches import aligned_batch, random_batch, with_leaves
from tests.losses import oracle
from tests.losses.settings import infonce
from tests.losses.test_infonce import gradients, ragged_batch

TERMS = [("q2d",), ("q2d", "d2q", "q2q", "d2d")]
EACH = [
    {"guide": {"teacher": "guide", "absolute": 0.0}},
    {"guide": {"teacher": "guide", "absolute": 0.1, "curated": False}},
    {"guide": {"teacher": "guide", "relative": 0.05}},
    {"guide": {"teacher": "guide", "threshold": 0.2}},
    {"same_class": True},
    {"scope": "own"},
    {"scope": "none"},
    {"scope": "others"},
    {"hardest": 2},
    {"near": 0.1},
    {"near": 0.0, "margin": 0.2, "same_class": True},
    {"decoupled": True},
    {"margin": 0.2},
    {"focal": 0.5},
    {"margin": 0.1, "false_negatives": {"absolute": 0.05}},
    {"focal": 2.0, "decoupled": True, "hardest": 3, "hardness": {"alpha": 4.0}, "same_class": True},
    {
        "guide": {"teacher": "guide", "relative": 0.1},
        "false_negatives": {"absolute": 0.1, "curated": True},
        "same_class": True,
        "scope": "own",
        "hardest": 2,
        "hardness": {"alpha": 5.0, "negatives": "hard"},
        "margin": 0.1,
        "focal": 0.5,
    },
]


def equipped_batch(seed: int) -> EmbeddingBatch:
    """Duplicates of every sort, classes (one query without), and a guide."""
    batch = ragged_batch(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    labels = torch.randint(0, 3, (len(batch.queries),), generator=generator)
    labels[0] = NO_LABEL

    def vectors(count: int) -> Embeddings:
        values = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        return Embeddings(torch.nn.functional.normalize(values, dim=1))

    guide = replace(batch, queries=vectors(len(batch.queries)), documents=vectors(len(batch.documents)))
    return replace(batch, relation=replace(batch.relation, labels=labels), teachers={"guide": guide})


@pytest.mark.parametrize("terms", TERMS, ids="-".join)
@pytest.mark.parametrize(("partition", "positives"), itertools.product(("joint", "separate"), ("each", "summed")))
@pytest.mark.parametrize("settings", EACH, ids=lambda s: "+".join(s))
def test_loss_and_gradient_are_those_of_a_loop_over_pairs(settings, terms, partition, positives):
    settings = settings | {"terms": terms, "partition": partition, "positives": positives, "temperature": 0.3}
    for seed in (1, 2):
        batch = equipped_batch(seed)
        output = infonce(**settings)(batch)
        reference = with_leaves(batch)
        expected, filtered = oracle.infonce(reference, **settings)
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        if "filtered_per_query" in output.metrics:
            assert output.metrics["filtered_per_query"].item() * 5 == pytest.approx(filtered)
        for found, wanted in zip(gradients(batch, output.loss), gradients(reference, expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_every_modifier_takes_part_in_the_batches_above():
    plain = [infonce(temperature=0.3, terms=TERMS[1])(equipped_batch(s)).loss.item() for s in (1, 2)]
    for settings in EACH:
        loss = [infonce(temperature=0.3, terms=TERMS[1], **settings)(equipped_batch(s)).loss.item() for s in (1, 2)]
        assert loss != pytest.approx(plain, abs=1e-6), settings


def test_a_margin_reaches_a_learned_temperature():
    batch = equipped_batch(1)
    criterion = infonce(temperature=0.3, learn_temperature=True, margin=0.2).double()
    criterion(batch).loss.backward()
    log_scale = criterion.temperature.log_scale.detach().clone().requires_grad_()
    expected, _ = oracle.infonce(with_leaves(batch), temperature=torch.exp(-log_scale), margin=0.2)
    expected.backward()
    assert criterion.temperature.log_scale.grad.item() == pytest.approx(log_scale.grad.item(), rel=1e-9)


class Fixed(torch.nn.Module):
    """A model for sentence-transformers' losses that gives out vectors by number."""

    def __init__(self, vectors: list[torch.Tensor]):
        super().__init__()
        self.vectors = vectors
        self.tokenizer = object()

    def forward(self, features: dict) -> dict:
        return {"sentence_embedding": self.vectors[features["number"]]}


@pytest.mark.parametrize("hard", [0, 1])
@pytest.mark.parametrize(
    ("strategy", "margin", "ours"),
    [
        ("absolute", 0.0, {"absolute": 0.0}),
        ("absolute", 0.1, {"absolute": 0.1}),
        ("relative", 0.05, {"relative": 0.05}),
    ],
)
def test_gist_is_that_of_sentence_transformers(strategy, margin, ours, hard):
    """With hard negatives without the term of positives against positives: ours has the hard negatives in it, theirs not."""
    batch = aligned_batch(3, queries=6, hard=hard, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    guide = [
        torch.nn.functional.normalize(torch.randn(6, 4, generator=generator).double(), dim=1)
        for _ in range(1 + 1 + hard)
    ]
    positive = batch.relation.is_positive
    documents = torch.empty(6 * (1 + hard), 4, dtype=torch.float64)
    documents[positive] = guide[1]
    if hard:
        documents[~positive] = guide[2]
    taught = replace(batch, queries=Embeddings(guide[0]), documents=Embeddings(documents))
    batch = replace(batch, teachers={"guide": taught})

    d = batch.documents.values
    peer = st_losses.GISTEmbedLoss.__new__(st_losses.GISTEmbedLoss)
    torch.nn.Module.__init__(peer)
    peer.model = Fixed([batch.queries.values, d[positive], d[~positive]])
    peer.guide, peer.temperature, peer.must_retokenize = Fixed(guide), 0.05, False
    peer.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    peer.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    peer.margin_strategy, peer.margin = strategy, margin
    peer.contrast_anchors, peer.contrast_positives, peer.gather_across_devices = True, not hard, False
    expected = peer([{"number": i} for i in range(2 + hard)], None)

    criterion = InfoNCE(
        temperature=0.05,
        terms=["q2d", "q2q"] if hard else ["q2d", "q2q", "d2d"],
        modifiers={"guide": GuideFilter(teacher="guide", **({"absolute": None} | ours))},
    )
    assert needs_of(criterion).teachers == ("guide",)
    output = criterion(batch)
    assert output.metrics["filtered_per_query"] > 0
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    reference = with_leaves(batch)
    peer.model.vectors = [
        reference.queries.values,
        reference.documents.values[positive],
        reference.documents.values[~positive],
    ]
    wanted = gradients(reference, peer([{"number": i} for i in range(2 + hard)], None))
    for x, found, want in zip((batch.queries.values, d), gradients(batch, output.loss), wanted, strict=True):
        along = (found * x).sum(1, keepdim=True) * x  # theirs normalises, so a gradient along the vector is lost
        torch.testing.assert_close(found - along, want, rtol=1e-6, atol=1e-9)


def test_what_is_missing_is_named():
    batch = random_batch(0)
    with pytest.raises(DataError, match=r"loss.modifiers.same_class reads the class of each row.*label"):
        infonce(same_class=True)(batch)
    with pytest.raises(ConfigError, match=r"reads the teacher 'guide', but the run has none. Add it under teachers"):
        infonce(guide={"teacher": "guide", "absolute": 0.0})(batch)


def test_a_row_that_beats_all_its_negatives_by_epsilon_teaches_nothing():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), dim=1)
    batch = aligned_batch(0, queries=2, hard=0, dtype=torch.float64)
    batch = replace(batch, queries=Embeddings(vectors), documents=Embeddings(vectors.clone()))
    for epsilon, taught in ((0.9, False), (1.1, True)):  # positives at 1, negatives at 0
        leaves = with_leaves(batch)
        loss = infonce(near=epsilon, temperature=0.5)(leaves).loss
        loss.backward()
        assert (loss.item() > 0) == taught
        assert bool(leaves.queries.values.grad.any()) == taught


def test_lusifer_is_nt_xent_over_the_pairs_that_the_miner_of_pytorch_metric_learning_keeps():
    """Its rule written out, with every text as an anchor: 0 for an anchor of which no pair is kept."""
    batch = aligned_batch(5, queries=6, hard=0, dtype=torch.float64)
    texts = torch.cat([batch.queries.values, batch.documents.values])
    similar, labels = texts @ texts.T, torch.arange(6).repeat(2)
    epsilon, temperature, losses, kept = 0.25, 0.05, [], 0
    for a in range(12):
        (p,) = (i for i in range(12) if i != a and labels[i] == labels[a])
        negatives = [
            similar[a, n] for n in range(12) if labels[n] != labels[a] and similar[a, n] + epsilon > similar[a, p]
        ]
        if similar[a, p] - epsilon >= max(similar[a, n] for n in range(12) if labels[n] != labels[a]):
            assert not negatives
            continue
        kept += len(negatives)
        logits = torch.stack([similar[a, p], *negatives]) / temperature
        losses.append(torch.logsumexp(logits, 0) - logits[0])
    assert 0 < kept < 12 * 10
    found = build(compose_config(["loss=lusifer"]).config["loss"])(batch).loss
    assert found.item() == pytest.approx(sum(losses).item() / 12, rel=1e-9)
