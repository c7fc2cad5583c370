"""Documents in front of each text: the chain rule, cut at their vectors, gives the gradient of plain autograd in both encoders.

The reference encodes all documents of the context and all texts in one piece, with no chunk, no cut and no leaf, in float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.backbones.contextual import ContextualBackbone
from embedtrain.data.context import choose
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.losses.infonce import InfoNCE
from embedtrain.pooling.mean import MeanPooling
from embedtrain.training.step import ContrastiveStep, mix
from embedtrain.types import EmbeddingBatch, Embeddings, RaggedTokens, Relation, TokenBatch
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.training.test_step import NaiveInfoNCE, error, gradients, make_batch

SEED, STEP = 7, 3


class TwoBags(nn.Module):
    """Two small encoders: of a document its mean; of a text its mean behind the weighted sum of the context."""

    tokens_in_front = 5

    def __init__(self, num_context: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_context = num_context
        self.first = nn.Embedding(50, 16, dtype=torch.float64)
        self.words = nn.Embedding(50, 16, dtype=torch.float64)
        self.layer = nn.Linear(16, 16, dtype=torch.float64)

    def encode_context(self, tokens: RaggedTokens) -> Embeddings:
        return Embeddings(torch.tanh(means(self.first(tokens.ids), tokens)), normalized=False)

    def forward(self, tokens: RaggedTokens, *, context: Tensor) -> Embeddings:
        text = means(self.words(tokens.ids), tokens)
        weights = torch.softmax(text @ context.T, dim=1)
        return Embeddings(nn.functional.normalize(torch.tanh(self.layer(text + weights @ context)), dim=-1))


def means(states: Tensor, tokens: RaggedTokens) -> Tensor:
    return torch.stack([states[a:b].mean(0) for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)])


def chosen(documents: int, wanted: int, rank: int, micro: int = 0) -> Tensor:
    return choose(documents, wanted, seed=mix(SEED, STEP, micro, rank, -1))


def reference(sizes: list[int], num_context: int) -> tuple[float, list[Tensor]]:
    """All ranks in one process, one after the other: each has its own context."""
    encoder, loss = TwoBags(num_context), NaiveInfoNCE().double()
    parts = [make_batch(size, first=sum(sizes[:rank])) for rank, size in enumerate(sizes)]
    queries, documents = [], []
    for rank, part in enumerate(parts):
        places = chosen(len(part.documents), num_context, rank)
        context = torch.cat([encoder.encode_context(part.documents.select(place[None])).values for place in places])
        queries.append(encoder(part.queries, context=context).values)
        documents.append(encoder(part.documents, context=context).values)
    whole = make_batch(sum(sizes)).relation
    total = loss(EmbeddingBatch(Embeddings(torch.cat(queries)), Embeddings(torch.cat(documents)), whole))
    parameters = [*encoder.parameters(), *loss.parameters()]
    return total.loss.item(), [g.detach() for g in torch.autograd.grad(total.loss, parameters)]


def one_step(sizes: list[int], num_context: int, chunk_tokens: int, cached_share: float) -> tuple[float, list[Tensor]]:
    """What a rank does."""
    rank = distributed.rank()
    step = ContrastiveStep(
        encoder=TwoBags(num_context),
        loss=NaiveInfoNCE().double(),
        chunk_tokens=chunk_tokens,
        cached_share=cached_share,
        seed=SEED,
    )
    result = step([make_batch(sizes[rank], first=sum(sizes[:rank]))], STEP)
    return result.loss, gradients(step)


def assert_same(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)  # the logged loss is fp32
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_context", [4, 40], ids=["a part of the documents", "all of them, more than once"])
@pytest.mark.parametrize("cached_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("chunk_tokens", [1, 30, 10_000])
def test_one_process_equals_plain_autograd(num_context, cached_share, chunk_tokens):
    assert_same(one_step([8], num_context, chunk_tokens, cached_share), reference([8], num_context))


@pytest.mark.parametrize("sizes", [[4, 4], [5, 3]])
@pytest.mark.parametrize("cached_share", [0.0, 0.5])
def test_two_ranks_have_a_context_each_and_equal_a_loop_over_them(sizes, cached_share):
    expected = reference(sizes, 6)
    for found in run_ranks(one_step, 2, sizes, 6, 30, cached_share):
        assert_same(found, expected)


def test_the_context_is_another_one_in_every_step_and_on_every_rank_and_the_same_again():
    seen = [choose(20, 8, seed=mix(SEED, step, 0, rank, -1)).tolist() for step in (0, 1) for rank in (0, 1)]
    assert len({tuple(one) for one in seen}) == 4
    assert seen[0] == choose(20, 8, seed=mix(SEED, 0, 0, 0, -1)).tolist()
    assert all(len(set(one)) == 8 for one in seen)


def test_what_stands_in_front_counts_in_the_budget_of_a_chunk():
    seen = []

    class Counting(TwoBags):
        def forward(self, tokens, *, context):
            seen.append(len(tokens) * self.tokens_in_front + tokens.num_tokens)
            return super().forward(tokens, context=context)

    step = ContrastiveStep(encoder=Counting(4), loss=NaiveInfoNCE().double(), chunk_tokens=30, seed=SEED)
    step([make_batch(8)], STEP)
    assert len(seen) > 5
    assert max(seen) <= 30


def contextual(folder: str, null_share: float = 0.3) -> Encoder:
    torch.manual_seed(0)
    backbone = ContextualBackbone(name=folder, num_context=6, num_prompts=2, null_share=null_share)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(), prompts=Prompts(), max_query_length=32, max_document_length=32
    )
    return Encoder(backbone=backbone, pooling=MeanPooling(), tokenizer=tokenizer)


def test_dropout_and_null_vectors_are_replayed_to_the_bit_in_both_encoders(tmp_path):
    folder = tiny_model_dir("bert", tmp_path)  # with dropout
    found = []
    for cached_share in (0.0, 0.5, 1.0):
        encoder = contextual(folder)
        step = ContrastiveStep(encoder=encoder, loss=InfoNCE(), chunk_tokens=60, cached_share=cached_share, seed=SEED)
        encoder.train()
        step([make_batch(6)], STEP)
        found.append(gradients(step))
        assert all(p.grad is not None for p in encoder.backbone.get_submodule("first.hf_model.encoder").parameters())
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_real_encoder_gives_the_gradient_of_plain_autograd(tmp_path):
    folder = tiny_model_dir("nomic_bert", tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = make_batch(6)
    encoder, loss = contextual(folder, null_share=0.0), NaiveInfoNCE()
    places = chosen(len(batch.documents), 6, 0)
    context = encoder.encode_context(batch.documents).values[places]
    queries, documents = (encoder(tokens, context=context) for tokens in (batch.queries, batch.documents))
    loss(EmbeddingBatch(queries, documents, batch.relation)).loss.backward()
    expected = [p.grad for p in encoder.parameters() if p.grad is not None]
    again = contextual(folder, null_share=0.0)
    step = ContrastiveStep(encoder=again, loss=NaiveInfoNCE(), chunk_tokens=40, cached_share=0.5, seed=SEED)
    step([batch], STEP)
    ratio, cosine = error([p.grad for p in again.parameters() if p.grad is not None], expected)
    assert ratio == pytest.approx(1, abs=1e-4)
    assert cosine > 1 - 1e-6


def test_documents_read_as_a_whole_are_context_as_a_whole():
    """Late chunking: one vector for each document, whatever its chunks."""
    documents = RaggedTokens(
        torch.arange(9), torch.tensor([0, 5, 9]), torch.tensor([[0, 2], [2, 5], [5, 9]]), None, torch.tensor([0, 2, 3])
    )
    relation = Relation(
        query_ids=torch.tensor([1, 2]),
        document_ids=torch.tensor([3, 4, 5]),
        owner=torch.tensor([0, 0, 1]),
        is_positive=torch.tensor([True, False, True]),
        known_ids=torch.tensor([3, 5]),
        known_offsets=torch.tensor([0, 1, 2]),
    )
    seen = []

    class Spans(TwoBags):
        def encode_context(self, tokens):
            seen.append(tokens.lengths.tolist())
            assert tokens.span_offsets is None
            return super().encode_context(tokens)

        def forward(self, tokens, *, context):
            whole = super().forward(tokens, context=context)
            return whole.select(tokens.span_texts())

    step = ContrastiveStep(encoder=Spans(3), loss=NaiveInfoNCE().double(), chunk_tokens=100, seed=SEED)
    step([TokenBatch(RaggedTokens.from_lists([[1], [2, 3]]), documents, relation)], STEP)
    assert seen == [[5, 4]]
