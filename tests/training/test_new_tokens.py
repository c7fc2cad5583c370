"""New tokens at both ends of a text, in whole runs: what trains, a resume, stages, the export, a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from embedtrain import log
from embedtrain.assemble import build_encoder
from embedtrain.cli import main
from embedtrain.export import verify
from embedtrain.export.load import load_encoder
from embedtrain.export.modules.reload import with_embedtrain
from embedtrain.export.sentence_transformers import export
from embedtrain.training.stages import plain_weights, take_over
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny
from tests.training.test_sharding import gradients

MARKS = {"[BOQ]": None, "[EOQ]": "[SEP]", "[BOD]": None, "[EOD]": "[SEP]"}
PROMPTS = {"query": "[BOQ]{text}[EOQ]", "document": "[BOD]{text}[EOD]"}
BIASES = "encoder.train_only=[bias$,new_rows$]"


def marked(folder: Path, *overrides: str, name: str = "run") -> dict[str, Any]:
    config = tiny_config(folder, "pooling=eos", "encoder.append_eos=false", *overrides, name=name)
    config["backbone"]["new_tokens"] = MARKS
    config["prompts"] |= PROMPTS
    return config


def test_texts_begin_and_end_in_the_marks_of_their_side(tmp_path):
    trainer = tiny_trainer(marked(tmp_path, "pooling=mean"))
    batch = next(iter(trainer.loader.steps(0, 1)))[0]
    hf = trainer.step.encoder.tokenizer.hf
    for tokens, side in ((batch.queries, "Q"), (batch.documents, "D")):
        assert len(tokens) >= 8
        for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
            words = hf.convert_ids_to_tokens(tokens.ids[start:stop].tolist())
            assert [words[1], words[-2]] == [f"[BO{side}]", f"[EO{side}]"]  # between [CLS] and [SEP]


def test_biases_and_the_new_rows_alone_train_and_resume_to_the_bit(tmp_path):
    whole = marked(tmp_path, BIASES, name="whole")
    trainer = tiny_trainer(whole)
    table = trainer.step.encoder.backbone.hf_model.get_input_embeddings()
    names = [name for name, _ in trainer.named]
    assert "encoder.backbone.hf_model.embeddings.word_embeddings.new_rows" in names
    assert all(name.endswith(("bias", "new_rows")) for name in names)
    before = table.weight.clone(), table.new_rows.detach().clone()
    trainer.fit(0)
    assert torch.equal(table.weight, before[0])
    assert ((table.new_rows != before[1]).any(1)).all()  # each of the four is in some text
    expected = torch.cat([parameter.detach().flatten() for _, parameter in trainer.named])
    config = marked(tmp_path, BIASES, name="cut")
    train_tiny(config, stop_after=2)
    _, resumed, _ = train_tiny(config)
    assert torch.equal(resumed, expected)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_have_the_gradient_of_one_process_also_of_shared_out_rows(sharded, tmp_path):
    config = marked(tmp_path, "training.epochs=1", "backbone.dropout=0.0", "training.cached_share=0.5")
    whole, _, _ = gradients(config, False)
    table = "encoder.backbone.hf_model.embeddings.word_embeddings.new_rows"
    assert whole[table].abs().sum(1).min() > 0
    for found, _, _ in run_ranks(gradients, 2, config, sharded):
        assert found.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(found[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(None, None), ({"r": 2}, None), (None, {"r": 2})])
def test_the_next_stage_goes_on_with_the_rows(before, after, tmp_path):
    def encoder_of(lora):
        config = marked(tmp_path)
        config["backbone"]["lora"] = lora
        return build_encoder(config).eval()

    first = encoder_of(before)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in plain_weights(first).items()}
    assert not [name for name in weights if "new_rows" in name]
    save_file(weights, tmp_path / "weights.safetensors")
    second = encoder_of(after)
    take_over(second, tmp_path / "weights.safetensors")
    texts = ["a cat", "blue stone"]
    for role in ("query", "document"):
        torch.testing.assert_close(
            second.encode(texts, role=role), first.encode(texts, role=role), rtol=1e-4, atol=1e-5
        )


def test_the_exported_model_reads_the_marks_and_may_be_merged(tmp_path, monkeypatch):
    def embed(folder, task, library):
        assert library == "embedtrain"
        return with_embedtrain(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr(verify, "_embed_in_fresh_process", embed)
    texts = ["a red cat", "stone " * 80]
    tables = []
    for number in range(2):
        encoder = build_encoder(marked(tmp_path)).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        export(encoder, tmp_path / f"model{number}", probes=texts)
        loaded = load_encoder(tmp_path / f"model{number}")
        assert loaded.tokenizer.prompts.templates == PROMPTS
        for role in ("query", "document"):
            found, expected = (one.encode(texts, role=role) for one in (loaded, encoder))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        tables.append(loaded.backbone.hf_model.get_input_embeddings().weight.detach())
    models = f"models=[{tmp_path}/model0,{tmp_path}/model1]"
    assert main(["merge", "method=linear", models, f"output={tmp_path}/merged"]) == 0
    log.stop()
    merged = load_encoder(tmp_path / "merged")
    assert merged.tokenizer.prompts.templates == PROMPTS
    torch.testing.assert_close(merged.backbone.hf_model.get_input_embeddings().weight, (tables[0] + tables[1]) / 2)
