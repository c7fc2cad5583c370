import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.losses.relation import Lists, RelationReader, follow
from embedtrain.types import Relation
from tests.helpers.batches import random_relation
from tests.losses.oracle import Kinds


@st.composite
def relations(draw) -> Relation:
    """From no duplicate at all to hardly anything else, with queries that brought no document among them."""
    least_positives = draw(st.integers(0, 1))
    return random_relation(
        torch.Generator().manual_seed(draw(st.integers(0, 2**31))),
        queries=draw(st.integers(1, 6)),
        positives=(least_positives, draw(st.integers(1, 3))),
        negatives=(0, draw(st.integers(0, 3))),
        texts=draw(st.sampled_from([None, 2, 5])),
        contents=draw(st.sampled_from([None, 3, 12])),
    )


def rows_of(relation: Relation, term: str) -> list[int]:
    if term[0] == "q":
        return list(range(relation.num_queries))
    return [d for d in range(relation.num_documents) if relation.is_positive[d]]


@given(relations(), st.sampled_from(["q2d", "d2q", "q2q", "d2d"]), st.randoms())
@settings(max_examples=250, deadline=None)
def test_exceptions_are_those_of_a_loop_over_all_pairs(relation, term, random):
    rows = rows_of(relation, term)
    random.shuffle(rows)
    columns = range(relation.num_queries if term[2] == "q" else relation.num_documents)
    slow = Kinds(relation)
    expected = [(i, c) for i, r in enumerate(rows) for c in columns if slow.is_exception(term, r, c)]
    found = RelationReader(relation).exceptions(term, torch.tensor(rows, dtype=torch.int64))
    assert list(zip(*(x.tolist() for x in found), strict=True)) == expected  # each once, row by row


@given(relations())
@settings(max_examples=100, deadline=None)
def test_every_pair_is_of_the_kind_that_the_relation_says(relation):
    reader, slow = RelationReader(relation), Kinds(relation)
    queries = torch.arange(relation.num_queries)
    pairs = [(q, d) for q in range(relation.num_queries) for d in range(relation.num_documents)]
    kinds = {pair: slow.kind(*pair) for pair in pairs}
    of_kind = {k: sorted(pair for pair in pairs if kinds[pair] == k) for k in ("positive", "ignore", "hard negative")}
    assert sorted(zip(reader.pair_query.tolist(), reader.pair_document.tolist(), strict=True)) == of_kind["positive"]
    assert sorted(zip(*(x.tolist() for x in reader.hard_negatives(queries)), strict=True)) == of_kind["hard negative"]
    for start in range(relation.num_queries):
        ignored = [pair for pair in of_kind["ignore"] if pair[0] >= start]
        assert reader.num_ignored(start, relation.num_queries) == len(ignored)


def test_the_same_answer_brought_on_another_rank_is_no_negative():
    # Rank 0: query 0 with document A and hard negative B. Rank 1: another query brought A; query 2 is query 0 again with C.
    a, b, c, d = 11, 22, 33, 44
    relation = Relation(
        query_ids=torch.tensor([1, 2, 1]),
        document_ids=torch.tensor([a, b, a, d, c]),
        owner=torch.tensor([0, 0, 1, 1, 2]),
        is_positive=torch.tensor([True, False, True, False, True]),
        known_ids=torch.tensor(
            [a, a, d, c]
        ),  # query 1 was given D as a hard negative although it is known to answer it
        known_offsets=torch.tensor([0, 1, 3, 4]),
    )
    reader = RelationReader(relation)
    row, column = reader.exceptions("q2d", torch.arange(3))
    assert [column[row == q].tolist() for q in range(3)] == [[0, 2, 4], [0, 2, 3], [0, 2, 4]]
    assert [x.tolist() for x in reader.hard_negatives(torch.arange(3))] == [[0], [1]]
    row, column = reader.exceptions("q2q", torch.arange(3))
    assert [column[row == q].tolist() for q in range(3)] == [[0, 1, 2]] * 3  # 0 and 2 the same text, 1 shares A


def test_labels_that_answer_many_queries_are_walked_once():
    """400 queries, one label: the walk passes 400 x 400 x 400 routes from a document to a document if not cut short."""
    n = 400
    relation = Relation(
        query_ids=torch.arange(n),
        document_ids=torch.zeros(n, dtype=torch.int64),
        owner=torch.arange(n),
        is_positive=torch.ones(n, dtype=torch.bool),
        known_ids=torch.zeros(n, dtype=torch.int64),
        known_offsets=torch.arange(n + 1),
    )
    row, column = RelationReader(relation).exceptions("d2d", torch.arange(n))
    assert row.numel() == n * n
    assert torch.equal(column.view(n, n), torch.arange(n).expand(n, n))


def test_lists_follow_one_another():
    friends = Lists(torch.tensor([2, 0, 2]), torch.tensor([5, 6, 7]), 3)
    assert [x.tolist() for x in friends(torch.tensor([2, 1, 0, 2]))] == [[0, 0, 2, 3, 3], [5, 7, 6, 5, 7]]
    back = Lists(torch.tensor([5, 7, 6]), torch.tensor([1, 1, 2]), 8)
    assert [x.tolist() for x in follow(torch.tensor([2, 0]), friends, back)] == [[0, 1], [1, 2]]
