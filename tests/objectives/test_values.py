"""Every objective against a slow obvious loop from its formula, one text and one word at a time, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from embedtrain.errors import ConfigError
from embedtrain.objectives.smae import StarbucksMAE
from embedtrain.training.step import mix
from embedtrain.training.token_step import TokenStep
from embedtrain.types import NO_TARGET
from tests.objectives.helpers import OBJECTIVES, batch_of, encoder_for, folder_of, objective_for

ROWS = 5


def texts_of(tokens):
    bounds = tokens.offsets.tolist()
    return [tokens.ids[a:b] for a, b in itertools.pairwise(bounds)]


def states_of(encoder, ids):
    """Last hidden states of one text, [L, H], by the model as its authors wrote it."""
    return encoder.backbone.hf_model(input_ids=ids[None]).last_hidden_state[0]


def logits_of(encoder, objective, h):
    """Of one state: the head of the family, written out."""
    table = encoder.backbone.hf_model.get_input_embeddings().weight
    if encoder.backbone.config.model_type == "bert":
        head = objective.head.model.cls.predictions
        dense, norm = head.transform.dense, head.transform.LayerNorm
        x = dense.weight @ h + dense.bias
        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = norm.weight * (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + norm.eps) + norm.bias
        return table @ x + head.bias
    return table @ h


def nll(encoder, objective, h, target):
    logits = logits_of(encoder, objective, h)
    return torch.logsumexp(logits, 0) - logits[target]


def mean(losses):
    return torch.stack(losses).mean()


def masked_lm(encoder, objective, task):
    losses = []
    for ids, labels in zip(texts_of(task.texts["text"]), texts_of(task.labels["masked_lm"]), strict=True):
        states = states_of(encoder, ids)
        losses += [nll(encoder, objective, states[i], labels[i]) for i in range(len(ids)) if labels[i] != NO_TARGET]
    return mean(losses)


def mntp(encoder, objective, task):
    """From the hidden words themselves, found by comparing what is read with what was written."""
    losses = []
    for ids, labels in zip(texts_of(task.texts["text"]), texts_of(task.labels["mntp"]), strict=True):
        states = states_of(encoder, ids)
        for i in range(1, len(ids)):
            if labels[i - 1] != NO_TARGET:
                losses.append(nll(encoder, objective, states[i - 1], labels[i - 1]))
    return mean(losses)


def causal_lm(encoder, objective, task):
    """Of what is read: without answers every token but the first; with them those behind the first end of text."""
    losses = []
    for ids in texts_of(task.texts["text"]):
        states = states_of(encoder, ids)
        given = ids.tolist().index(encoder.tokenizer.hf.eos_token_id) + 1 if objective.answers else 1
        losses += [nll(encoder, objective, states[i - 1], ids[i]) for i in range(given, len(ids))]
    return mean(losses)


def layer_norm(module, x):
    return module.weight * (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + module.eps) + module.bias


def attention_block(block, query, context):
    """One query [H] that sees all of a context [n, H]."""
    size = query.numel() // block.heads
    q, keys, values = block.query(query), block.key(context), block.value(context)
    parts = []
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.softmax(keys[:, part] @ q[part] / math.sqrt(size), 0)
        parts.append((weights[:, None] * values[:, part]).sum(0))
    a = layer_norm(block.attention_norm, query + block.output(torch.cat(parts)))
    x = block.inner(a)
    return layer_norm(block.norm, a + block.outer(0.5 * x * (1 + torch.erf(x / math.sqrt(2)))))


def retromae(encoder, objective, task):
    embed = encoder.backbone.hf_model.get_input_embeddings()
    first, second, third = [], [], []
    parts = (task.texts["text"], task.labels["encoder"], task.labels["decoder"])
    for text, (ids, hidden, words) in enumerate(zip(*map(texts_of, parts), strict=True)):
        states = states_of(encoder, ids)
        h = states[0]
        first += [nll(encoder, objective, states[i], hidden[i]) for i in range(len(ids)) if hidden[i] != NO_TARGET]
        places = [i for i in range(len(ids)) if words[i] != NO_TARGET]
        position = objective.positions.weight
        inputs = [layer_norm(objective.input_norm, embed(words[i]) + position[i]) for i in places]
        draw = torch.Generator().manual_seed(int(task.seeds[text]) + 1)
        seen = torch.rand(len(places), len(places), generator=draw) >= objective.decoder_share
        for number, i in enumerate(places):
            context = [h] + [x for other, x in enumerate(inputs) if other != number and seen[number, other]]
            a = attention_block(objective.block, h + position[i], torch.stack(context))
            second.append(nll(encoder, objective, a, words[i]))
        if places:
            scores = torch.stack([logits_of(encoder, objective, states[i]) for i in places]).amax(0)
            log_p = scores - torch.logsumexp(scores, 0)
            third.append(-sum(log_p[w] for w in {int(words[i]) for i in places}) / len(places))
    return mean(first) + mean(second) + objective.weights.get("bag_of_words", 0.0) * mean(third)


def smae(encoder, objective, task):
    embed = encoder.backbone.hf_model.get_input_embeddings()
    total = 0.0
    parts = (task.texts["text"], task.labels["encoder"], task.labels["inputs"], task.labels["decoder"])
    for layer, dim in objective.pairs:
        shown, rebuilt = [], []
        for ids, hidden, inputs, wanted in zip(*map(texts_of, parts), strict=True):
            states = encoder.backbone.hf_model(ids[None], output_hidden_states=True).hidden_states[layer][0]
            short = [torch.cat([state[:dim], state.new_zeros(32 - dim)]) for state in states]
            shown += [nll(encoder, objective, short[i], hidden[i]) for i in range(len(ids)) if hidden[i] != NO_TARGET]
            places = [i for i in range(len(ids)) if inputs[i] != NO_TARGET]
            run = [objective.project.weight[:, :dim] @ states[0][:dim]]
            run += [layer_norm(objective.input_norm, embed(inputs[i]) + objective.positions.weight[i]) for i in places]
            for number, i in enumerate(places, 1):
                if wanted[i] != NO_TARGET:
                    a = attention_block(objective.block, run[number], torch.stack(run))
                    rebuilt.append(nll(encoder, objective, a, wanted[i]))
        total = total + (mean(shown) + mean(rebuilt)) / 2
    return total / len(objective.pairs)


def reconstruction(encoder, objective, task):
    embed = encoder.backbone.hf_model.get_input_embeddings()
    losses = {"q2d": [], "d2q": []}
    sides = [texts_of(tokens) for tokens in (task.texts["query"], task.texts["document"])]
    for query, document in zip(*sides, strict=True):
        for term, a, b in (("q2d", query, document), ("d2q", document, query)):
            h = states_of(encoder, a)[-1]
            states = encoder.backbone.hf_model(inputs_embeds=torch.cat([h[None], embed(b)])[None]).last_hidden_state[0]
            eos = encoder.tokenizer.hf.eos_token_id
            losses[term] += [nll(encoder, objective, states[j], b[j]) for j in range(len(b)) if b[j] != eos]
    return 0.2 * mean(losses["q2d"]) + 0.8 * mean(losses["d2q"])


def translation(encoder, objective, task):
    special = encoder.tokenizer.hf.all_special_ids
    losses = []
    for query, document in zip(texts_of(task.texts["query"]), texts_of(task.texts["document"]), strict=True):
        memory = [s for s, i in zip(states_of(encoder, query), query.tolist(), strict=True) if i not in special]
        places = [j for j, i in enumerate(document.tolist()) if i not in special]
        stream = memory + [objective.mask + objective.positions.weight[j] for j in places]
        for block in objective.blocks:
            stream = [attention_block(block, x, torch.stack(stream)) for x in stream]
        rebuilt = stream[len(memory) :]
        losses += [nll(encoder, objective, x, document[j]) for x, j in zip(rebuilt, places, strict=True)]
    return mean(losses)


def bridge_alignment(encoder, objective, task):
    """Both models as their authors wrote them; the head is tied, and there is no token that begins a text."""
    bridge, connector = encoder.backbone, encoder.backbone.connector
    table = bridge.llm.hf_model.get_input_embeddings().weight
    sides = [texts_of(tokens) for tokens in (*task.texts.values(), *task.labels.values())]
    losses = {term: [] for term in task.labels}
    for read, written, *labels in zip(*sides, strict=True):
        states = bridge.encoder.hf_model(input_ids=read[None]).last_hidden_state[0]
        inner = (states @ connector.inner.weight.T + connector.inner.bias).clamp(min=0)
        vectors = inner @ connector.outer.weight.T + connector.outer.bias
        run = torch.cat([vectors, connector.learned, table[written]])
        out = bridge.llm.hf_model(inputs_embeds=run[None]).last_hidden_state[0]
        for term, wanted in zip(task.labels, labels, strict=True):
            for j in range(len(written)):
                if wanted[j] != NO_TARGET:
                    logits = table @ out[len(vectors) + j]  # the learned token for the first, else the word before
                    losses[term].append(torch.logsumexp(logits, 0) - logits[wanted[j]])
    return torch.stack([mean(found) for found in losses.values()]).mean()


REFERENCES = {
    f.__name__: f for f in (causal_lm, masked_lm, mntp, retromae, smae, reconstruction, translation, bridge_alignment)
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in OBJECTIVES),
        ("causal_lm", {"answers": True}),
        ("retromae", {"bag_of_words": 0.1}),
        ("bridge_alignment", {"share": 0.5, "decoder_share": 0.0}),
    ],
)
def test_value_and_gradient_are_those_of_a_slow_loop(name, changes, tmp_path):
    encoder = encoder_for(name, folder_of(name, tmp_path), kernel="padded").double()
    objective = objective_for(name, encoder, **changes).double()
    batch = batch_of(0, ROWS, encoder)
    step = TokenStep(encoder=encoder, objective=objective, chunk_tokens=40)
    result = step([batch], 3)
    expected = REFERENCES[name](encoder, objective, objective.prepare(batch, mix(0, 3)))
    gradients = torch.autograd.grad(expected, step.parameters, allow_unused=True)
    assert result.loss == pytest.approx(expected.item(), rel=1e-9)
    unused = 0
    for parameter, gradient in zip(step.parameters, gradients, strict=True):
        if gradient is None:
            unused += 1
            assert parameter.grad is None or not parameter.grad.any()
            continue
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)
    assert unused == 0


def test_every_objective_with_a_yaml_has_a_reference():
    assert set(REFERENCES) == set(OBJECTIVES)


def test_both_directions_of_translation_are_the_mean_of_each(tmp_path):
    encoder = encoder_for("translation", folder_of("translation", tmp_path))
    batch = batch_of(0, ROWS, encoder)
    values = {}
    for rebuild in ("document", "query", "both"):
        objective = objective_for("translation", encoder, rebuild=rebuild)
        values[rebuild] = TokenStep(encoder=encoder, objective=objective, chunk_tokens=10_000)([batch], 0).loss
    assert values["both"] == pytest.approx((values["document"] + values["query"]) / 2, rel=1e-5)
    assert values["document"] != pytest.approx(values["query"], rel=1e-4)


def test_logits_in_parts_give_the_value_and_gradient_of_all_at_once(monkeypatch):
    from embedtrain.objectives import prediction

    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11).double()
    hidden, targets = torch.randn(9, 6, dtype=torch.float64, requires_grad=True), torch.randint(11, (9,))
    expected = F.cross_entropy(head(hidden), targets, reduction="sum")
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    monkeypatch.setattr(prediction, "_ROWS", 4)
    value = prediction.prediction_loss(head, hidden, targets)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, [hidden, *head.parameters()]), wanted)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "expected \\[layer, dim\\] once or more"),
        ([[0, 8]], "\\[0, 8\\], but .* has the layers 1 to 2, of 32 dimensions"),
        ([[3, 8]], "\\[3, 8\\], but"),
        ([[1, 33]], "\\[1, 33\\], but"),
    ],
)
def test_pairs_that_the_model_does_not_have_are_refused(pairs, message, tmp_path):
    encoder = encoder_for("smae", folder_of("smae", tmp_path))
    with pytest.raises(ConfigError, match=message):
        StarbucksMAE(encoder=encoder, pairs=pairs)
