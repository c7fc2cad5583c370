import pytest
import torch

from embedtrain import distributed
from embedtrain.losses.contrast import contrast
from embedtrain.losses.formulas import FORMULAS
from embedtrain.training.telemetry import batch_facts
from embedtrain.types import EmbeddingBatch, Embeddings
from tests.helpers.ranks import run_ranks
from tests.training.test_step import make_batch, micro_batches


def softmax_width(batch: EmbeddingBatch) -> float:
    """Mean number of negatives in the denominators: with equal vectors and scale 0 each negative adds exp(0) = 1."""
    widths = []

    def formula(rows):
        widths.append(rows.negatives["q2d"].detach().exp().sum())
        return FORMULAS["each", "joint"](rows)

    contrast(batch, scale=torch.tensor(0.0), terms=["q2d"], formula=formula)
    return float(sum(widths)) / len(batch.queries)


def ones(relation) -> EmbeddingBatch:
    return EmbeddingBatch(
        Embeddings(torch.ones(relation.num_queries, 4)), Embeddings(torch.ones(relation.num_documents, 4)), relation
    )


def facts_of_rank(sizes):
    rank = distributed.rank()
    batch = make_batch(sizes[rank], first=sum(sizes[:rank]))
    relation, _, _ = distributed.gather_relation(batch.relation)
    return batch_facts([batch]), softmax_width(ones(relation))


@pytest.mark.parametrize("sizes", [[9], [5, 4], [3, 2, 2, 2]])
def test_the_printed_negatives_are_the_width_of_the_softmax(sizes):
    for facts, width in run_ranks(facts_of_rank, len(sizes), sizes):
        assert facts.queries == 9
        assert facts.negatives == pytest.approx(width)
        assert facts.positives == 1
        assert facts.ignored == pytest.approx(3 * 2 / 9)  # queries 0, 3 and 6 share an answer
        assert (facts.cross_device_negatives > 0) == (len(sizes) > 1)


def test_facts_of_a_small_batch_by_hand():
    facts = batch_facts([make_batch(2)])  # 3 + 2 documents, 1 positive each
    assert facts.documents == 5
    assert facts.hard_negatives == 1.5
    assert facts.in_batch_negatives == 2.5
    assert facts.cross_device_negatives == 0
    line = facts.line()
    assert line.startswith(
        "first step: 2 queries, each with 1.0 positives, 1.5 hard negatives, 2.5 in-batch + 0.0 cross-device"
    )


def test_a_loss_that_reads_hard_negatives_only_has_no_others():
    facts = batch_facts([make_batch(2)], in_batch=False)
    assert (facts.hard_negatives, facts.negatives) == (1.5, 1.5)
    assert "1.5 hard negatives, no in-batch negatives, which the loss leaves out" in facts.line()


def test_accumulation_adds_no_negatives():
    whole, halves = batch_facts([make_batch(8)]), batch_facts(micro_batches(8, 0, 2))
    assert whole.queries == halves.queries == 8
    assert halves.in_batch_negatives < whole.in_batch_negatives / 2


def test_padding_is_counted_where_the_backbone_pads():
    batch = make_batch(4)
    lengths = torch.cat([batch.queries.lengths, batch.documents.lengths])
    assert batch_facts([batch]).padding_share == 0
    padded = int(lengths.max()) * lengths.numel()
    assert batch_facts([batch], padded_chunk_tokens=10_000).padding_share == pytest.approx(
        1 - int(lengths.sum()) / padded
    )
