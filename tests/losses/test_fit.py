"""What a loss reads and the run does not have is refused before anything is trained, with the key and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn
from transformers import BertConfig

from embedtrain.config.compose import compose_config
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.fit import fit, needs_for, refuse_bare_rows
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.modifiers.guide import GuideFilter
from embedtrain.losses.ranking.cosent import CoSENT
from embedtrain.losses.ranking.online_triplet import OnlineTriplet
from embedtrain.losses.wrappers.gaussian import GaussianKL
from embedtrain.losses.wrappers.layers import LayerMatryoshka
from embedtrain.losses.wrappers.matryoshka import Matryoshka
from embedtrain.losses.wrappers.routed import Routed
from embedtrain.losses.wrappers.token_groups import TokenGroups
from embedtrain.losses.wrappers.view import View
from embedtrain.losses.wrappers.weighted_sum import WeightedSum
from embedtrain.planning import make_plan
from embedtrain.pooling.gaussian import GaussianPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.types import TrainingExample

ONE = InfoNCE()
GUIDED = InfoNCE(modifiers={"guide": GuideFilter(teacher="guide")})


class StandIn(nn.Module):
    """As much of an encoder as `fit` looks at."""

    embedding_dim = 8

    def __init__(self, pooling: nn.Module | None = None, views: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.pooling = pooling or MeanPooling()
        self.views = nn.ModuleDict({name: MeanPooling() for name in views})
        self.layers: tuple[int, ...] = ()

    def read_layers(self, layers: tuple[int, ...]) -> None:
        self.layers = layers


def fitted(loss: nn.Module, encoder: StandIn | None = None, teachers: dict[str, int] | None = None) -> StandIn:
    encoder = encoder or StandIn()
    fit(loss, encoder, teachers=teachers or {}, sources=["pairs"])
    return encoder


def test_the_encoder_is_told_the_layers_of_all_losses_inside():
    loss = WeightedSum(
        losses={"a": LayerMatryoshka(inner=ONE, pairs=[[3, 4], [1, 2]]), "b": View(inner=ONE, view="layer_2")}
    )
    assert fitted(loss).layers == (1, 2, 3)
    assert fitted(Matryoshka(inner=GUIDED, dims=[8]), teachers={"guide": 5}).layers == ()


@pytest.mark.parametrize(
    ("loss", "encoder", "message"),
    [
        (View(inner=ONE, view="sparse"), StandIn(), r"reads the view sparse.*encoder\.views\.sparse"),
        (GUIDED, StandIn(), r"reads the teacher guide, but the run has none.*teachers\.guide\.model"),
        (Matryoshka(inner=ONE, dims=[16, 8]), StandIn(), r"loss\.dims: \[16\] above the embedding size 8"),
        (TokenGroups(inner=ONE, groups=[[1, 1]]), StandIn(), r"pooling=multi_vector"),
        (GaussianKL(inner=ONE), StandIn(), r"MeanPooling makes none. Use pooling=gaussian"),
        (ONE, StandIn(GaussianPooling(hidden_size=8, dim=4)), r"Use loss=gaussian"),
        (Routed(losses={"sts": ONE}, default=ONE), StandIn(), r"sts is no source of data\.sources. There are: pairs"),
        (Routed(losses={}), StandIn(), r"no loss for source pairs"),
    ],
)
def test_what_the_run_does_not_have_is_named(loss, encoder, message):
    with pytest.raises(ConfigError, match=message):
        fitted(loss, encoder)


def test_what_it_has_is_accepted():
    fitted(View(inner=ONE, view="sparse"), StandIn(views=("sparse",)))
    fitted(GaussianKL(inner=ONE), StandIn(GaussianPooling(hidden_size=8, dim=4)))
    fitted(Routed(losses={"pairs": ONE}))


def row(**settings) -> TrainingExample:
    return TrainingExample(query="q", positives=("p",), row="rows.jsonl:3", **settings)


def test_rows_without_scores_or_labels_are_named():
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the loss learns from scores, and this row has none.*'pairs'"):
        refuse_bare_rows(WeightedSum(losses={"a": ONE, "b": CoSENT()}), [row(source="pairs")])
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the loss reads the class of each row.*label"):
        refuse_bare_rows(OnlineTriplet(), [row(source="pairs")])
    refuse_bare_rows(CoSENT(), [row(source="pairs", scores=(1.0,))])


def test_a_source_must_bring_what_its_own_route_reads():
    routed = Routed(losses={"sts": CoSENT(), "topics": OnlineTriplet()}, default=ONE)
    assert needs_for(routed, "sts").scores
    assert not needs_for(routed, "topics").scores
    refuse_bare_rows(routed, [row(source="sts", scores=(0.5,)), row(source="topics", label="a"), row(source="pairs")])
    with pytest.raises(DataError, match="'topics'"):
        refuse_bare_rows(Matryoshka(inner=routed, dims=[4]), [row(source="pairs"), row(source="topics")])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> list[str]:
    folder: Path = tmp_path_factory.mktemp("run")
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    BertConfig(**shape, intermediate_size=64).save_pretrained(folder)
    rows = [{"query": f"q{i}", "positives": [f"p{i}"]} for i in range(50)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return [
        "data=pairs",
        f"data.path={folder / 'pairs.jsonl'}",
        f"backbone.name={folder}",
        "training.global_batch_size=16",
    ]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["loss=cosent"], DataError, "learns from scores"),
        (["loss=class_masked"], DataError, "reads the class"),
        (["loss=gist"], ConfigError, "reads the teacher guide"),
        (["loss=starbucks"], ConfigError, "layer"),
        (["loss=matryoshka"], ConfigError, "above the embedding size 32"),
        (["loss=matryoshka", "loss.dims=[32]", "loss@loss.inner=cross_batch_memory"], ConfigError, "has a memory"),
        (["loss=token_groups"], ConfigError, "pooling=multi_vector"),
        (["loss=gaussian"], ConfigError, "pooling=gaussian"),
        (["pooling=gaussian"], ConfigError, "loss=gaussian"),
    ],
)
def test_check_refuses_it(run, overrides, error, message):
    with pytest.raises(error, match=message):
        make_plan(compose_config([*run, *overrides]).config, world=1)
