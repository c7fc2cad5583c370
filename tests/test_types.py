import torch
from hypothesis import given
from hypothesis import strategies as st

from embedtrain.types import Embeddings, RaggedTokens, text_id

texts = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=8)


def lists(tokens: RaggedTokens) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


def pooled(tokens: RaggedTokens) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in tokens.spans]


@given(texts, st.data())
def test_select_takes_the_texts_in_the_order_asked_for_with_their_spans(rows, data):
    skip = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    tokens = RaggedTokens.from_lists(rows, skip)
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=10))
    chosen = tokens.select(torch.tensor(index))
    assert lists(chosen) == [rows[i] for i in index]
    assert pooled(chosen) == [rows[i][skip[i] :] for i in index]


@given(st.lists(texts, min_size=1, max_size=4))
def test_cat_puts_parts_one_after_the_other(parts):
    joined = RaggedTokens.cat([RaggedTokens.from_lists(part) for part in parts])
    everything = [row for part in parts for row in part]
    assert lists(joined) == everything
    assert pooled(joined) == everything
    assert len(joined) == len(everything)
    assert joined.num_tokens == sum(map(len, everything))
    assert joined.lengths.tolist() == list(map(len, everything))


def test_no_texts_is_a_run_of_no_tokens():
    empty = RaggedTokens.from_lists([])
    assert (len(empty), empty.num_tokens, empty.spans.shape) == (0, 0, (0, 2))


def test_text_ids_are_the_same_in_every_process_and_fit_an_int64():
    assert text_id("embedtrain") == 1651837583612167304
    assert all(0 <= text_id(str(i)) < 2**63 for i in range(1000))
    assert text_id("\ud800") != text_id("")  # a lone surrogate, as broken JSON may hold, has an id too


def test_truncation_goes_back_to_the_unit_sphere_only_where_the_full_vector_was():
    values = torch.tensor([[3.0, 4.0, 12.0]])
    torch.testing.assert_close(Embeddings(values / 13).truncate(2).values, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(Embeddings(values, normalized=False).truncate(2).values, torch.tensor([[3.0, 4.0]]))
    full = Embeddings(values)
    assert full.truncate(3) is full
    assert (len(full), full.dim) == (1, 3)


def test_moving_keeps_shapes_on_the_cpu():
    moved = RaggedTokens.from_lists([[1, 2], [3]]).to("meta")
    assert moved.ids.device.type == "meta"
    assert moved.offsets.device.type == moved.spans.device.type == "cpu"
