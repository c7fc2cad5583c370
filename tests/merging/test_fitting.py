"""What is measured of a model on rows: against autograd of single weights, and against inputs that are caught by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from embedtrain.assemble import build_encoder
from embedtrain.config.compose import compose_config
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export.load import load_encoder
from embedtrain.losses.infonce import InfoNCE
from embedtrain.merging.methods.self_positioning import coefficients, gram_matrix, positioned
from embedtrain.merging.probe import all_tokens, contrast, probe_batches, probe_loss
from embedtrain.merging.statistics import fisher, gram_matrices, write_fisher, write_grams
from embedtrain.merging.weights import FolderWeights
from embedtrain.types import TokenBatch
from tests.helpers.runs import tiny_config
from tests.merging.folders import write_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fitting")


@pytest.fixture
def encoder(root: Path) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(tiny_config(root, "encoder.projection_dim=8"))


@pytest.fixture
def batches(root: Path, encoder: Encoder) -> list[TokenBatch]:
    return probe_batches(tiny_config(root), encoder, samples=10, batch_size=5, seed=0)


def loss_of(encoder: Encoder, batch: TokenBatch) -> torch.Tensor:
    """InfoNCE as its formula, of embeddings that the encoder makes text by text."""
    tokens = all_tokens(batch)
    vectors = torch.cat([encoder(tokens.select(torch.tensor([i]))).values for i in range(len(tokens))])
    queries, documents = vectors.split([len(batch.queries), len(batch.documents)])
    first = torch.nonzero(batch.relation.is_positive).flatten()
    return nn.functional.cross_entropy(queries @ documents.T / 0.05, first)


def test_the_loss_of_a_probe_batch_is_that_of_its_texts(encoder: Encoder, batches: list[TokenBatch]) -> None:
    encoder.eval()
    assert [len(batch.queries) for batch in batches] == [5, 5]
    for batch in batches:
        found = contrast(InfoNCE(), encoder(all_tokens(batch)), batch)
        torch.testing.assert_close(found, loss_of(encoder, batch), rtol=1e-4, atol=1e-5)


def test_fisher_is_the_mean_square_of_the_gradients_of_batches(encoder: Encoder, batches: list[TokenBatch]) -> None:
    encoder.train()  # dropout must not reach what is measured
    found = fisher(encoder, InfoNCE(), batches)
    assert encoder.training
    encoder.eval()
    expected: dict[str, torch.Tensor] = {}
    for batch in batches:
        encoder.zero_grad()
        loss_of(encoder, batch).backward()
        for name, parameter in encoder.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad.square() / 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-10)  # key biases have none: rounding


def test_fisher_is_written_under_the_names_of_the_weights(root: Path, tmp_path: Path) -> None:
    folder = write_model(root, "fisher", "encoder.projection_dim=8", seed=1)
    encoder, weights = load_encoder(folder), FolderWeights(folder)
    measured = {name: torch.full_like(p, float(n)) for n, (name, p) in enumerate(encoder.named_parameters())}
    written = write_fisher(encoder, measured, tmp_path / "fisher")
    assert set(written) == set(weights)
    numbers = {name: value.flatten()[0].item() for name, value in measured.items()}
    assert written["2_Dense/linear.bias"].unique().tolist() == [numbers["projection.bias"]]
    name = "encoder.layer.1.output.dense.weight"
    assert written[name].unique().tolist() == [numbers[f"backbone.hf_model.{name}"]]


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_grams_are_of_every_token_and_of_no_padding(kernel: str, root: Path, tmp_path: Path) -> None:
    encoder = build_encoder(tiny_config(root, f"backbone.kernel={kernel}"))
    batches = probe_batches(tiny_config(root), encoder, samples=10, batch_size=5, seed=0)
    found = write_grams(gram_matrices(encoder, batches), tmp_path / "grams" / "model.safetensors")
    assert set(found) == {
        f"{name}.weight" for name, m in encoder.backbone.hf_model.named_modules() if isinstance(m, nn.Linear)
    }
    layer = encoder.backbone.hf_model.encoder.layer[1].output.dense
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2).detach()))
    encoder.eval()
    for batch in batches:
        tokens = all_tokens(batch)
        for i in range(len(tokens)):
            encoder(tokens.select(torch.tensor([i])))
    inputs = torch.cat(seen)
    expected = torch.zeros(inputs.shape[1], inputs.shape[1])
    for row in inputs:
        expected += torch.outer(row, row)
    torch.testing.assert_close(found["encoder.layer.1.output.dense.weight"], expected, rtol=1e-3, atol=1e-3)


def test_the_gradient_through_a_real_encoder_is_its_finite_difference(
    encoder: Encoder, batches: list[TokenBatch]
) -> None:
    """d loss / d (a, lambda) through functional_call, by central differences."""
    encoder.eval()
    draw = torch.Generator().manual_seed(0)
    start = {name: p.detach() for name, p in encoder.named_parameters()}
    vectors = [{n: 0.05 * torch.randn(p.shape, generator=draw) for n, p in start.items()} for _ in range(2)]
    gram, tokens = gram_matrix(vectors), all_tokens(batches[0])

    def loss(point: torch.Tensor) -> torch.Tensor:
        parameters = positioned(start, vectors, coefficients(gram, point[:2], point[2]))
        return contrast(InfoNCE(), functional_call(encoder, parameters, (tokens,)), batches[0])

    point = torch.tensor([1.0, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(point), point)
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-2
        with torch.no_grad():
            difference = (loss(point + step) - loss(point - step)).item() / 2e-2
        assert gradient[i].item() == pytest.approx(difference, rel=2e-2, abs=2e-3)


def test_a_loss_that_cannot_be_measured_is_refused(root: Path, encoder: Encoder) -> None:
    config = tiny_config(root)
    with pytest.raises(ConfigError, match="runs/a trains by an objective, which contrasts nothing"):
        probe_loss(config | {"objective": {"_target_": "x"}}, encoder, owner="runs/a")
    guided = compose_config(["loss=gist"]).config["loss"]
    with pytest.raises(ConfigError, match=r"runs/a: its loss reads a teacher \(guide\). Give one that does not"):
        probe_loss(config | {"loss": guided}, encoder, owner="runs/a")
