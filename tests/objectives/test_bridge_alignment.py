"""What a language model writes through a bridge: which words it is asked for, what it is shown, what is refused."""

from __future__ import annotations

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.types import NO_TARGET
from tests.objectives.helpers import batch_of, encoder_for, examples, folder_of, objective_for
from tests.objectives.test_values import bridge_alignment, texts_of

NAME = "bridge_alignment"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return folder_of(NAME, tmp_path_factory.mktemp("bridge"))


def prepared(folder, *, attention="causal", **changes):
    encoder = encoder_for(NAME, folder, attention=attention, kernel="padded")
    objective = objective_for(NAME, encoder, **changes)
    return encoder, objective, objective.prepare(batch_of(0, 5, encoder), 3)


def asked(task, term):
    """The words that each item is asked for."""
    return [[i for i in labels.tolist() if i != NO_TARGET] for labels in texts_of(task.labels[term])]


def test_texts_are_written_again_and_queries_are_completed_by_their_positives(folder):
    encoder, objective, task = prepared(folder)
    hf = objective.written_by.hf

    def spell(found):
        return [hf.decode(ids) for ids in found if ids]

    rows = examples(0, 5)
    texts = [row.query for row in rows] + [
        text for row in rows for text in (*row.positives, *row.negatives) if text != row.query
    ]
    assert spell(asked(task, "reconstruction")) == texts
    pairs = [row for row in rows if row.positives[0] != row.query]
    assert spell(asked(task, "completion")) == [row.positives[0] for row in pairs]
    read = [encoder.tokenizer.hf.decode(ids, skip_special_tokens=True) for ids in texts_of(task.texts["read"])]
    assert read == [*texts, *(row.query for row in pairs)]


def test_texts_without_pairs_are_written_again_alone(folder):
    encoder, objective, _ = prepared(folder)
    task = objective.prepare(batch_of(2, 3, encoder), 3)  # a row that is its own positive
    assert len(task) == 1
    assert [int(task.targets[term].sum() > 0) for term in ("reconstruction", "completion")] == [1, 0]
    assert objective(encoder, task)["completion"].item() == 0


def test_each_task_alone_and_the_mean_of_both(folder):
    def value(**changes):
        encoder, objective, task = prepared(folder, **changes)
        sums = objective(encoder, task)
        return sum(objective.weights[t] * sums[t].item() / task.targets[t].sum().item() for t in sums)

    alone = [value(task=name) for name in ("reconstruction", "completion")]
    assert value(task="both") == pytest.approx(sum(alone) / 2, rel=1e-6)
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)


def test_a_causal_model_is_asked_for_every_word_and_one_that_looks_both_ways_for_the_hidden_ones(folder):
    _, objective, task = prepared(folder)
    mask = objective.decoder_masker.mask_id
    hidden = sum(int((ids == mask).sum()) for ids in texts_of(task.texts["written"]))
    assert sum(map(len, asked(task, "reconstruction") + asked(task, "completion"))) > 1.5 * hidden > 0
    _, _, both_ways = prepared(folder, attention="bidirectional")
    assert torch.equal(both_ways.texts["written"].ids, task.texts["written"].ids)
    assert sum(map(len, asked(both_ways, "reconstruction") + asked(both_ways, "completion"))) == hidden


def test_a_model_that_looks_both_ways_has_the_value_of_the_slow_loop(folder):
    encoder, objective, task = prepared(folder, attention="bidirectional")
    encoder, objective = encoder.double(), objective.double()
    expected = bridge_alignment(encoder, objective, task)
    sums = objective(encoder, task)
    value = sum(objective.weights[t] * sums[t] / task.targets[t].sum() for t in sums)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_what_the_encoder_reads_is_hidden_for_reconstruction_alone(folder):
    encoder, _, task = prepared(folder, share=0.5)
    mask, pairs = encoder.tokenizer.hf.mask_token_id, sum(map(bool, asked(task, "completion")))
    hides = [bool((ids == mask).any()) for ids in texts_of(task.texts["read"])]
    assert all(hides[:-pairs])
    assert not any(hides[-pairs:])
    whole = prepared(folder)[2]
    assert asked(task, "reconstruction") == asked(whole, "reconstruction")


def test_the_token_that_begins_a_text_stands_before_everything(folder):
    encoder, objective, task = prepared(folder)
    plain = objective(encoder, task)["completion"].item()
    objective.written_by.hf.bos_token = "[CLS]"
    seen = []
    encoder.backbone.llm.register_forward_pre_hook(
        lambda _, __, options: seen.append(options["inputs"]), with_kwargs=True
    )
    assert objective(encoder, task)["completion"].item() != pytest.approx(plain, rel=1e-4)
    table = encoder.backbone.llm.hf_model.get_input_embeddings().weight
    assert torch.equal(seen[0][0], table[objective.written_by.hf.bos_token_id])
    objective.written_by.hf.bos_token = None


def test_what_cannot_be_asked_is_refused(folder):
    with pytest.raises(ConfigError, match=r"decoder_share=0: a language model that looks both ways"):
        prepared(folder, attention="bidirectional", decoder_share=0.0)
    with pytest.raises(
        ConfigError, match=r"objective\.task='recall': expected one of reconstruction, completion, both"
    ):
        prepared(folder, task="recall")
    with pytest.raises(ConfigError, match=r"mask_token: \w+ has no mask token of its own"):
        prepared(folder, mask_token=None)
    with pytest.raises(ConfigError, match=r"two models of a bridge.*TransformerBackbone.*backbone=bridge"):
        objective_for(NAME, encoder_for("masked_lm", folder))
