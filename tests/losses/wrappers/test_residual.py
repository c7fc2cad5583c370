from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from embedtrain.errors import ConfigError
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.residual import Residual
from embedtrain.types import EmbeddingBatch, Embeddings, Relation, needs_of, text_id

Q, E, T = 4, 8, 5


def batch(queries, documents, base) -> EmbeddingBatch:
    owner = torch.arange(Q)
    ids = torch.tensor([text_id(f"d{i}") for i in range(Q)])
    relation = Relation(
        query_ids=torch.tensor([text_id(f"q{i}") for i in range(Q)]),
        document_ids=ids,
        owner=owner,
        is_positive=torch.ones(Q, dtype=torch.bool),
        known_ids=ids,
        known_offsets=torch.arange(Q + 1),
    )
    teacher = EmbeddingBatch(queries=Embeddings(base[0]), documents=Embeddings(base[1]), relation=relation)
    return EmbeddingBatch(
        queries=Embeddings(queries), documents=Embeddings(documents), relation=relation, teachers={"base": teacher}
    )


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_it_is_the_loss_of_the_sum_of_similarities_and_the_teacher_gets_no_gradient(weight):
    torch.manual_seed(0)
    queries, documents, *base = (F.normalize(torch.randn(Q, n, dtype=torch.float64), dim=1) for n in (E, E, T, T))
    leaves = [x.requires_grad_() for x in (queries, documents, *base)]
    loss = Residual(inner=InfoNCE(temperature=0.2), teacher="base", weight=weight)
    assert needs_of(loss).teachers == ("base",)
    found = loss(batch(queries, documents, base)).loss
    logits = (queries @ documents.T + weight * (base[0] @ base[1].T).detach()) / 0.2
    expected = F.cross_entropy(logits, torch.arange(Q))
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, leaves, allow_unused=True)
    theirs = torch.autograd.grad(expected, leaves[:2])
    assert ours[2] is None
    assert ours[3] is None
    for one, other in zip(ours[:2], theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_where_the_teacher_knows_the_answer_there_is_less_to_learn():
    torch.manual_seed(1)
    queries, documents = (F.normalize(torch.randn(Q, E), dim=1) for _ in range(2))
    sure, unsure = torch.eye(Q, T), torch.ones(Q, T) / T**0.5
    values = []
    for base in (sure, unsure):
        leaf = queries.clone().requires_grad_()
        loss = Residual(inner=InfoNCE(temperature=0.1), teacher="base")(batch(leaf, documents, (base, base))).loss
        values.append(torch.autograd.grad(loss, leaf)[0].norm().item())
    assert values[0] < 0.1 * values[1]


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"loss\.weight: expected a number above 0, got 0"):
        Residual(inner=InfoNCE(), weight=0)
