"""Sums, views, token groups, Gaussians and routes: each against what it says it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from embedtrain.errors import ConfigError
from embedtrain.losses import prepare
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.gaussian import GaussianKL, document_vectors, query_vectors
from embedtrain.losses.wrappers.matryoshka import Matryoshka
from embedtrain.losses.wrappers.routed import Routed
from embedtrain.losses.wrappers.token_groups import TokenGroups, first_tokens
from embedtrain.losses.wrappers.training_head import TrainingHead
from embedtrain.losses.wrappers.view import View
from embedtrain.losses.wrappers.weighted_sum import WeightedSum
from embedtrain.types import Embeddings, needs_of, text_id
from tests.helpers.batches import random_batch, with_leaves
from tests.losses.test_infonce import gradients
from tests.losses.test_similarity import batch_with_views, leaves

ONE, OTHER = InfoNCE(temperature=0.2), InfoNCE(temperature=0.5, terms=["d2q"])


def test_a_weighted_sum_is_one_and_reports_each():
    batch = random_batch(0)
    output = WeightedSum(losses={"one": ONE, "other": OTHER, "dropped": None}, weights={"other": 0.3})(batch)
    assert output.loss.item() == pytest.approx((ONE(batch).loss + 0.3 * OTHER(batch).loss).item())
    assert output.metrics["loss_other"].item() == pytest.approx(OTHER(batch).loss.item())
    assert output.metrics["one/accuracy"] == ONE(batch).metrics["accuracy"]


def test_a_sum_inside_a_sum_inside_matryoshka_composes():
    batch = random_batch(1, dim=8)
    inner = WeightedSum(losses={"sum": WeightedSum(losses={"one": ONE}), "other": OTHER})
    found = Matryoshka(inner=inner, dims=[8, 4])(batch)
    expected = sum((ONE(b).loss + OTHER(b).loss) for b in (batch, batch.truncate(4)))
    assert found.loss.item() == pytest.approx(expected.item())


def test_dims_may_be_drawn():
    batch = random_batch(0, dim=8)
    loss = Matryoshka(inner=ONE, dims=[8, 4, 2], dims_per_step=2)
    seen = set()
    for seed in range(30):
        metrics = loss(replace(batch, seed=seed)).metrics
        drawn = frozenset(name for name in metrics if name.startswith("loss_"))
        assert len(drawn) == 2
        seen.add(drawn)
    assert len(seen) == 3
    with pytest.raises(ConfigError, match=r"loss.dims_per_step: expected 1 to 3"):
        Matryoshka(inner=ONE, dims=[8, 4, 2], dims_per_step=4)


def test_a_view_is_the_loss_of_that_view():
    batch = batch_with_views(0)
    loss = View(inner=ONE, view="sparse")
    assert loss(batch).loss == ONE(batch.view("sparse")).loss
    assert needs_of(loss).views == ("sparse",)
    assert needs_of(View(inner=ONE, view="layer_4")).layers == (4,)
    with pytest.raises(ConfigError, match=r"reads the view 'other'.*encoder makes 'sparse', 'tokens'"):
        View(inner=ONE, view="other")(batch)


def test_groups_of_tokens_are_the_first_of_each_text():
    batch = batch_with_views(1).view("tokens")
    loss = TokenGroups(inner=ONE, groups=[[1, 1], [2, 4]], weights=[1.0, 0.5])
    output = loss(batch)
    parts = []
    for q, d in ((1, 1), (2, 4)):
        cut = replace(batch, queries=cut_by_hand(batch.queries, q), documents=cut_by_hand(batch.documents, d))
        parts.append(ONE(cut).loss)
    expected = parts[0] + 0.5 * parts[1]
    assert output.loss.item() == pytest.approx(expected.item())
    found = torch.autograd.grad(output.loss, leaves(batch))
    for a, b in zip(found, torch.autograd.grad(expected, leaves(batch)), strict=True):
        torch.testing.assert_close(a, b)
    assert set(output.metrics) >= {"loss_1x1", "loss_2x4"}


def cut_by_hand(embeddings: Embeddings, count: int) -> Embeddings:
    texts = [
        embeddings.values[a : min(b, a + count)]
        for a, b in zip(embeddings.offsets, embeddings.offsets[1:], strict=False)
    ]
    offsets = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0)
    return Embeddings(torch.cat(texts), offsets=offsets)


def test_groups_need_token_vectors():
    with pytest.raises(ConfigError, match=r"Use pooling=multi_vector"):
        first_tokens(random_batch(0).queries, 2)
    with pytest.raises(ConfigError, match=r"loss.groups"):
        TokenGroups(inner=ONE, groups=[[0, 1]])


def test_the_inner_product_of_gaussians_is_their_negative_kl():
    draw = torch.Generator().manual_seed(0)
    q, d = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (3, 5))
    similar = query_vectors(q) @ document_vectors(d).T
    for i in range(3):
        first = Normal(q[i, :3], (q[i, 3:] / 2).exp())
        entropy_part = (
            0.5 * (q[i, 3:] + 1).sum()
        )  # h(N_q) without the constant of 2 pi, what the inner product leaves out
        for j in range(5):
            second = Normal(d[j, :3], (d[j, 3:] / 2).exp())
            kl = kl_divergence(first, second).sum()
            assert similar[i, j].item() == pytest.approx((-kl - entropy_part).item(), rel=1e-10)


def test_gaussians_are_contrasted_by_negative_kl():
    batch = random_batch(0, dim=6)
    batch = replace(batch, queries=replace(batch.queries, normalized=False))
    expected = ONE(
        replace(
            batch,
            queries=Embeddings(query_vectors(batch.queries.values), normalized=False),
            documents=Embeddings(document_vectors(batch.documents.values), normalized=False),
        )
    )
    output = GaussianKL(inner=ONE)(batch)
    assert output.loss == expected.loss
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients(batch, output.loss))


def routed_batch(names: list[str]):
    batch = random_batch(4, queries=len(names), contents=12)
    sources = torch.tensor([text_id(name) for name in names])
    return replace(batch, relation=replace(batch.relation, sources=sources))


def test_a_batch_of_one_source_goes_to_its_loss():
    routed = Routed(losses={"a": ONE, "b": OTHER})
    batch = routed_batch(["b"] * 5)
    output = routed(batch)
    assert output.loss == OTHER(batch).loss
    assert output.metrics["b/accuracy"] == OTHER(batch).metrics["accuracy"]


def test_a_blended_batch_is_each_source_with_its_own_documents():
    batch = routed_batch(["a", "b", "a", "c", "b", "a"])
    output = Routed(losses={"a": ONE, "b": OTHER}, default=ONE)(batch)
    expected = 0
    for queries, loss in (([0, 2, 5], ONE), ([1, 4], OTHER), ([3], ONE)):
        part = batch.select(torch.tensor(queries))
        assert len(part.documents) == sum(int((batch.relation.owner == q).sum()) for q in queries)
        expected = expected + len(queries) / 6 * loss(part).loss
    assert output.loss.item() == pytest.approx(expected.item())
    parts = [
        Routed(losses={"a": ONE, "b": OTHER}, default=ONE)(replace(with_leaves(batch), rows=rows)).loss.item()
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(parts) == pytest.approx(output.loss.item())


def test_sources_without_a_loss_and_losses_without_a_source_are_refused():
    routed = Routed(losses={"a": ONE})
    with pytest.raises(ConfigError, match=r"no loss for source b. Add one under that name, or set loss.default"):
        routed.refuse_unrouted({"a": 1, "b": 2})
    with pytest.raises(ConfigError, match=r"loss.losses: a is no source of data.sources. There are: b"):
        Routed(losses={"a": ONE}, default=ONE).refuse_unrouted({"b": 1})
    with pytest.raises(ConfigError, match=r"Set loss.default"):
        routed(routed_batch(["b"]))


def test_a_temperature_may_be_shared():
    def learned() -> InfoNCE:
        return InfoNCE(temperature=0.1, learn_temperature=True)

    separate = Routed(losses={"a": learned(), "b": learned()})
    assert len(list(separate.parameters())) == 2
    shared = Routed(losses={"a": learned(), "b": learned()}, default=ONE, shared_temperature=True)
    assert len(list(shared.parameters())) == 1
    shared(routed_batch(["a", "b"])).loss.backward()
    assert next(shared.parameters()).grad.abs() > 0
    with pytest.raises(ConfigError, match="no loss here learns its temperature"):
        Routed(losses={"a": ONE}, shared_temperature=True)


def test_a_sum_names_what_is_wrong():
    with pytest.raises(ConfigError, match=r"loss.losses is empty"):
        WeightedSum(losses={})
    with pytest.raises(ConfigError, match=r"loss.weights: two is no loss here. There are: one"):
        WeightedSum(losses={"one": ONE}, weights={"two": 1.0})


# ------------------------------------------------------------------------------------------- a head that is thrown away


@pytest.mark.parametrize(("layers", "activation"), [(1, "tanh"), (2, "relu"), (2, "tanh")])
def test_a_training_head_is_the_loss_of_what_it_makes(layers: int, activation: str) -> None:
    batch = random_batch(2, dim=8)
    loss = TrainingHead(inner=ONE, layers=layers, dim=5, activation=activation)
    prepare(loss, embedding_dim=8, teachers={})
    prepare(loss, embedding_dim=8, teachers={})  # again: nothing is made anew
    loss.double()

    def by_hand(values: torch.Tensor) -> Embeddings:
        rows = []
        for vector in values:
            for number, layer in enumerate(loss.linear):
                vector = layer.weight @ vector + layer.bias
                if activation == "tanh":
                    vector = vector.tanh()
                elif number + 1 < layers:
                    vector = vector.clamp(min=0)
            rows.append(vector / vector.norm())
        return Embeddings(torch.stack(rows))

    expected = ONE(replace(batch, queries=by_hand(batch.queries.values), documents=by_hand(batch.documents.values)))
    found = loss(batch)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    found.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.linear.parameters())
