"""Published sums of graded losses, composed from their YAMLs."""

from __future__ import annotations

import torch

from embedtrain.config.build import build
from embedtrain.config.compose import compose_config
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.ranking.pearson import Pearson
from embedtrain.losses.ranking.pro import PRO
from embedtrain.losses.ranking.rank_kl import RankKL
from embedtrain.losses.ranking.ranknet import RankNet
from embedtrain.types import Needs, needs_of
from tests.losses.ranking.batches import graded_batch


def composed(name: str) -> torch.nn.Module:
    return build(compose_config([f"loss={name}"]).config["loss"])


def test_codiemb_is_its_weighted_sum():
    batch = graded_batch(1)
    loss = composed("codiemb")
    expected = 2 * Pearson()(batch).loss + 0.5 * PRO()(batch).loss + 5 * RankKL()(batch).loss
    output = loss(batch)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["loss_pearson"], Pearson()(batch).loss.detach())
    assert needs_of(loss) == Needs(scores=True)


def test_e2rank_is_its_weighted_sum():
    batch = graded_batch(1)
    expected = InfoNCE(temperature=0.03)(batch).loss + 2 * RankNet(temperature=0.1)(batch).loss
    torch.testing.assert_close(composed("e2rank")(batch).loss, expected)


def test_a_regulariser_is_added_by_name_and_logged_beside_the_loss():
    node = compose_config(
        ["loss=weighted_sum", "+loss@loss.losses.spread=spread_out", "+loss.weights.spread=0.1"]
    ).config["loss"]
    output = build(node)(graded_batch(1))
    total = output.metrics["loss_contrast"] + 0.1 * output.metrics["loss_spread"]
    torch.testing.assert_close(output.loss.detach(), total)
    assert output.metrics["loss_spread"] > 0
