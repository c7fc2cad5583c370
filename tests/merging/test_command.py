"""`embedtrain merge` from words to a checked folder, on tiny models and tiny runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from embedtrain import log
from embedtrain.cli import main
from embedtrain.config.merging import METHODS
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export.load import load_encoder
from embedtrain.merging.inputs import expanded, read_model
from embedtrain.merging.methods.linear import Linear
from embedtrain.merging.methods.slerp import Slerp
from embedtrain.merging.states import merge_states
from embedtrain.merging.weights import FolderWeights
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny, write_pairs
from tests.merging.folders import write_model

TEXTS = ["where is the cat", "a red stone", "old birds near the river"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    for seed in range(3):
        write_model(folder, f"m{seed}", "prompts.query='q: '", "encoder.projection_dim=8", seed=seed)
    write_pairs(folder / "dev.jsonl", 12)
    return folder


@pytest.fixture
def merge(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Path, str]]:
    """Runs the command; gives the folder and what was printed. Fails where the command does."""

    def run(*words: str, models: str = "m1,m2") -> tuple[Path, str]:
        out = tmp_path / "out"
        named = ",".join(name if "/" in name else str(root / name) for name in models.split(","))
        code = main(["merge", f"models=[{named}]", f"output={out}", *words])
        log.stop()
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return out, captured.out

    return run


def evaluators(root: Path) -> list[str]:
    place = "evaluation.evaluators.held_out"
    pairs = f"{{_target_:embedtrain.data.sources.PairsFile,path:{root / 'dev.jsonl'}}}"
    return ["evaluation=held_out", f"{place}.pairs={pairs}", f"{place}.metrics=[mrr@10]", "evaluation.resamples=100"]


def test_merged_models_are_reloaded_with_the_same_embeddings(root: Path, merge) -> None:
    """Checked by a fresh process on the way, and here by the formula: the mean of the files' tensors."""
    out, said = merge("method=linear", "weight=[3,1]")
    assert "sentence-transformers" in said
    assert "gives the same embeddings, cosine at least 1.0" in said
    expected = merge_states(Linear(weight=[3.0, 1.0]), [FolderWeights(root / name) for name in ("m1", "m2")])
    found = FolderWeights(out)
    for name, tensor in expected:
        assert torch.equal(found[name], tensor)
    ours = load_encoder(out)
    theirs = SentenceTransformer(str(out), device="cpu")
    assert ours.tokenizer.prompts.templates["query"] == "q: "
    torch.testing.assert_close(ours.encode(TEXTS), torch.from_numpy(theirs.encode_query(TEXTS)), rtol=1e-4, atol=1e-5)
    assert not out.with_name("out.merging").exists()


@pytest.mark.usefixtures("in_process")
def test_the_card_says_what_was_merged_how(root: Path, merge) -> None:
    out, _ = merge("method=ties", f"base={root / 'm0'}", "density=[0.3,0.6]", "lambda=0.9", "dtype=bfloat16")
    card = (out / "README.md").read_text()
    assert "It was merged from 2 models by `ties`." in card
    assert "- merge\n" in card
    assert f"Method: ties, from the base `{root / 'm0'}`" in card
    assert f"| `{root / 'm1'}` | 0.3 |" in card
    assert "| lambda | 0.9 |" in card
    assert "not measured when it was merged" in card
    assert FolderWeights(out).dtype == torch.bfloat16


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_folders(method: str, root: Path, merge) -> None:
    kind = METHODS[method]
    words = [f"base={root / 'm0'}"] if kind.base else []
    words += ["data=pairs", f"data.path={root / 'pairs.jsonl'}"] if "data" in kind.reads else []
    words += ["samples=16", "batch_size=8"] if "data" in kind.reads else []
    words += ["steps=3"] if method == "self_positioning" else []
    words += evaluators(root) if "evaluation" in kind.reads else []
    out, said = merge(f"method={method}", *words)
    vectors = load_encoder(out).encode(TEXTS)
    assert torch.isfinite(vectors).all()
    assert method in (out / "README.md").read_text()
    if method == "self_positioning":
        rows = [line.split() for line in said.splitlines() if line.lstrip()[:1].isdigit()]
        assert [row[0] for row in rows] == ["0", "1", "2", "3"]
        assert rows[0][2:5] == ["1.0000", "1.0000", "1.0000"]
    if method == "greedy_soup":
        assert " taken" in said


@pytest.mark.usefixtures("in_process")
def test_the_merged_model_is_compared_with_each_input(root: Path, merge) -> None:
    out, said = merge("method=slerp", *evaluators(root))
    table = said[said.index("held_out (12 queries") :].splitlines()
    assert table[1].split()[:3] == ["mrr@10", "*", "out"]
    assert [line.split()[0] for line in table[2:5]] == [str(root / "m1"), str(root / "m2"), "out"]
    first, second, merged = (float(line.split()[1]) for line in table[2:5])
    assert float(table[2].split()[2]) == pytest.approx(merged - first, abs=0.011)
    card = (out / "README.md").read_text()
    assert f"| held_out | mrr@10 | {max(first, second) / 100:.4f} | {merged / 100:.4f} |"[:40] in card
    assert "`before` is the best of the models that were merged" in card


@pytest.mark.usefixtures("in_process")
def test_a_file_of_mergekit_is_merged(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"model": str(root / name)} for name in ("m1", "m2")]
    node = {"merge_method": "slerp", "base_model": str(root / "m2"), "models": entries, "parameters": {"t": 0.3}}
    (tmp_path / "merge.yaml").write_text(json.dumps(node))
    assert main(["merge", f"config={tmp_path / 'merge.yaml'}", f"output={tmp_path / 'out'}"]) == 0
    log.stop()
    expected = dict(merge_states(Slerp(t=0.3), [FolderWeights(root / name) for name in ("m2", "m1")]))
    found = FolderWeights(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("in_process")
def test_prompts_of_sources_are_kept_where_models_do_not_disagree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs on different mixtures have prompts for different sources."""

    def merged(first: dict[str, str], second: dict[str, str]) -> int:
        for name, prompts in (("a", first), ("b", second)):
            path = tmp_path / name / "config_sentence_transformers.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {"query": "q: "} | prompts}))
        return main(["merge", "method=linear", f"models=[{tmp_path}/a,{tmp_path}/b]", f"output={tmp_path}/out"])

    for name in ("a", "b"):
        write_model(tmp_path, name)
    assert merged({"sts_query": "s: "}, {"nli_document": "n: ", "other": "o"}) == 0
    prompts = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "q: ", "document": "", "sts_query": "s: ", "nli_document": "n: "}
    assert "the prompt 'other' of" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    assert merged({"sts_query": "s: "}, {"sts_query": "t: "}) == 2
    log.stop()
    assert "the prompt 'sts_query' is 't: ' in" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- inputs


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters and two checkpoints, and without an exported model."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder, "backbone.lora={r: 4, alpha: 8}", "training.save_every=2")
    train_tiny(config, stop_after=4)
    return folder


@pytest.mark.usefixtures("in_process")
def test_checkpoints_of_a_run_with_adapters_are_merged_by_their_products(lora_run: Path, merge) -> None:
    """The mean of W + s B A over checkpoints: not W + s mean(B) mean(A)."""
    out, _ = merge("method=linear", models=f"{lora_run}/run/checkpoints/step_*")
    config = tiny_config(lora_run, "backbone.lora={r: 4, alpha: 8}", "training.save_every=2")
    weights = []
    for step in (2, 4):
        encoder, _ = _encoder_at(config, lora_run / f"run/checkpoints/step_{step:08d}")
        weights.append(encoder.backbone.merged_model().state_dict())
    found = FolderWeights(out)
    for name, tensor in weights[0].items():
        if name in found:
            torch.testing.assert_close(found[name], (tensor + weights[1][name]) / 2)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(weights[0][name], weights[1][name])


def _encoder_at(config, path: Path):
    from embedtrain.training.checkpoint import load_weights, read_checkpoint

    trainer = tiny_trainer(config)
    load_weights(read_checkpoint(path), trainer.named)
    encoder = trainer.step.encoder
    trainer.run._lock.close()  # type: ignore[attr-defined]
    return encoder, trainer


def test_a_run_without_an_exported_model_gives_its_newest_checkpoint(lora_run: Path, tmp_path: Path) -> None:
    newest = read_model(str(lora_run / "run"), tmp_path / "run").weights
    last = read_model(str(lora_run / "run/checkpoints/step_00000004"), tmp_path / "step").weights
    assert all(torch.equal(newest[name], last[name]) for name in last)


def test_a_damaged_checkpoint_and_one_of_no_run_are_refused(lora_run: Path, tmp_path: Path) -> None:
    source = lora_run / "run/checkpoints/step_00000002"
    for target, message in (
        (tmp_path / "checkpoints" / "step_00000002", "belongs to no run: no config.yaml"),
        (lora_run / "run/checkpoints/step_00000099", "is damaged"),
    ):
        target.mkdir(parents=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        (target / "state.json").write_text("{}")
        with pytest.raises(CheckpointError, match=message):
            read_model(str(target), tmp_path / "scratch")
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


def test_a_peft_adapter_is_added_to_its_base(root: Path, tmp_path: Path) -> None:
    """By our reading, against peft's own merge."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModel.from_pretrained(root / "m0"), config)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer.json"):
        (folder / name).write_bytes((root / "m0" / name).read_bytes())
    (folder / "tokenizer_config.json").write_bytes((root / "m0" / "tokenizer_config.json").read_bytes())
    for module in ("1_Pooling", "2_Dense", "3_Normalize"):
        (folder / module).mkdir()
        for file in (root / "m0" / module).iterdir():
            (folder / module / file.name).write_bytes(file.read_bytes())
    found = read_model(str(folder), tmp_path / "scratch").weights
    merged = model.merge_and_unload().state_dict()
    name = "encoder.layer.1.attention.self.query.weight"
    torch.testing.assert_close(found[name], merged[name])
    assert not torch.equal(found[name], FolderWeights(root / "m0")[name])


def test_a_whitened_run_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "export.whiten_to=6")
    train_tiny(config, stop_after=1)
    with pytest.raises(ConfigError, match=r"was whitened \(export.whiten_to=6\)"):
        read_model(str(tmp_path / "run"), tmp_path / "scratch")


def test_names_with_a_star_are_spelt_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert expanded(["m[0-9]"]) == ["m[0-9]"]
    assert expanded(["m?", "x"]) == ["m0", "m1", "m2", "x"]
    with pytest.raises(ConfigError, match=r"models: n\* matches no folder"):
        expanded(["n*"])
    with pytest.raises(ConfigError, match="models: m1 twice"):
        expanded(["m1", "m*"])


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=slerp", "models=[m1,m2]"], "output: required, and not set"),
        (["method=slerp", "models=[m1,m2]", "output=m0"], "output=m0: is there already"),
        (["method=slerp", "models=[m1,nowhere/x/y]", "output=o"], "nowhere/x/y is no folder here"),
        (["method=slerp", "models=[m1,model]", "output=o"], "model: modules.json is missing"),
        (["method=greedy_soup", "models=[m1,m2]", "output=o"], "evaluation.evaluators: empty, and the method chooses"),
        (
            ["method=fisher", "models=[m1,m2]", "output=o"],
            "data.sources: empty, and m1 is no run whose data could be read",
        ),
        (
            ["method=self_positioning", "base=m0", "models=[m1,m2]", "output=o"],
            "data.sources: empty. self_positioning searches by the loss on rows of its own",
        ),
        (["method=fisher", "models=[m1,m2]", "output=o", "loss.temprature=1"], "loss.temprature"),
        (["method=slerp", "models=[m1,m2]", "output=o", "evaluation.primry=1"], "evaluation.primry"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    words: list[str], message: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    before = sorted(path.name for path in root.iterdir())
    assert main(["merge", *words]) in (1, 2)
    log.stop()
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == before


def test_a_launch_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["merge", "method=slerp", "models=[a,b]", "output=o"]) == 2
    assert "merge runs as one process" in capsys.readouterr().err
