import json
import math
import os
import signal

import pytest
import torch

from embedtrain.errors import ConfigError, TrainingError
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.training.callbacks import Evaluate, Save, primary_score
from embedtrain.training.checkpoint import find_checkpoint, load_weights
from embedtrain.training.trainer import Terminated
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny, weights


def metrics(folder, name="run"):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_goes_down(tmp_path):
    train_tiny(tiny_config(tmp_path, "training.epochs=20", "optim.learning_rate=3e-3", "backbone.dropout=0.0"))
    losses = [line["train/loss"] for line in metrics(tmp_path)]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_learning_rate_is_the_closed_form_for_any_ranks_and_accumulation(tmp_path, world, accumulation):
    """A scheduler that is stepped once per rank runs the schedule world times too fast."""
    config = tiny_config(
        tmp_path, f"training.accumulation_steps={accumulation}", "optim.warmup_steps=2", "optim.schedule=cosine"
    )
    run_ranks(train_tiny, world, config)
    rates = [line["train/learning_rate"] for line in metrics(tmp_path)]
    expected = [(s + 1) / 2 if s < 2 else 0.5 * (1 + math.cos(math.pi * (s - 2) / 4)) for s in range(6)]
    assert rates == pytest.approx([1e-3 * factor for factor in expected])


def test_bf16_autocast_trains_and_keeps_fp32_weights(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, "training.mixed_precision=bf16"))
    before = weights(trainer)
    trainer.fit()
    assert all(parameter.dtype == torch.float32 for _, parameter in trainer.named)
    assert (weights(trainer) != before).float().mean() > 0.2  # all but the embeddings of unused words


def test_a_gradient_is_clipped_to_the_norm(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, "training.clip_norm=0.01", "optim.weight_decay=0.0"))
    norms = []
    step = trainer.optimizer.step

    def noted():
        norms.append(float(torch.cat([p.grad.flatten() for _, p in trainer.named if p.grad is not None]).norm()))
        step()

    trainer.optimizer.step = noted
    trainer.fit()
    assert norms == pytest.approx([0.01] * 6, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_leaves_the_checkpoint(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, "training.save_every=1"))
    good = {}

    class Poison:
        def on_step(self, trainer, step):
            if step == 3:
                good["weights"] = weights(trainer)
                trainer.named[0][1].data.fill_(float("nan"))

        def on_end(self, trainer, step): ...
        def state_dict(self):
            return {}

    trainer.callbacks["poison"] = Poison()
    with pytest.raises(
        TrainingError, match=r"step 3: the loss is not finite \(sources in the batch: pairs; .*pairs\.jsonl:\d+"
    ):
        trainer.fit()
    assert find_checkpoint(trainer.checkpoints).step == 3
    again = tiny_trainer_after_failure(trainer, tmp_path)
    assert again.resume() == 3
    assert torch.equal(weights(again), good["weights"])


def tiny_trainer_after_failure(trainer, folder):
    trainer.run._lock.close()  # as the end of the failed process would
    return tiny_trainer(tiny_config(folder, "training.save_every=1"))


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_step_at_hand_and_says_where(tmp_path, number, exit_code):
    trainer = tiny_trainer(tiny_config(tmp_path))

    class Preempt:
        def on_step(self, trainer, step):
            if step == 2:
                os.kill(os.getpid(), number)

        def on_end(self, trainer, step): ...
        def state_dict(self):
            return {}

    trainer.callbacks["preempt"] = Preempt()
    before = signal.getsignal(number)
    with pytest.raises(Terminated, match="stopped after 2 of 6 steps and saved in") as stopped:
        trainer.fit()
    assert stopped.value.exit_code == exit_code
    assert find_checkpoint(trainer.checkpoints).step == 2
    assert signal.getsignal(number) == before


def result(score):
    return {"dev": EvaluationResult(name="dev", metrics={"ndcg@10": score, "mrr@10": 0.1}, primary="ndcg@10")}


def evaluating(trainer, scores, *, patience=None, every=1):
    answers = iter(scores)
    trainer.callbacks = {
        "evaluate": Evaluate(
            evaluate=lambda: result(next(answers)),
            every=every,
            primary=None,
            patience=patience,
            best_path=trainer.checkpoints / "best.safetensors",
        )
    }
    return trainer.callbacks["evaluate"]


def test_early_stop_ends_the_run_and_puts_the_best_weights_back(tmp_path):
    heads = ("encoder.projection_dim=8", "loss.learn_temperature=true")
    trainer = tiny_trainer(tiny_config(tmp_path, *heads))
    assert {name for name, _ in trainer.named} >= {"encoder.projection.weight", "loss.temperature.log_scale"}
    at = {}
    evaluate = evaluating(trainer, [0.1, 0.5, 0.4, 0.3, 0.9], patience=2)
    run = evaluate._run
    evaluate._run = lambda t, step: (at.update({step: weights(t)}), run(t, step))
    assert trainer.fit() == 4
    assert trainer.stop_reason == "no improvement for 2 evaluations (best dev/ndcg@10 50.00 at step 2)"
    assert torch.equal(weights(trainer), at[2])
    assert not torch.equal(at[2], at[4])


def test_the_last_checkpoint_holds_the_best_weights_also_where_the_last_step_was_saved(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path))
    at = {}
    evaluate = evaluating(trainer, [0.1, 0.5, 0.4, 0.3], patience=2)
    trainer.callbacks["save"] = Save(every=2)
    run = evaluate._run
    evaluate._run = lambda t, step: (at.update({step: weights(t)}), run(t, step))
    trainer.save(trainer.fit())
    checkpoint = find_checkpoint(trainer.checkpoints)
    assert checkpoint.step == 4
    load_weights(checkpoint, trainer.named)
    assert torch.equal(weights(trainer), at[2])
    assert not torch.equal(at[2], at[4])


def test_evaluations_are_logged_under_their_names(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path))
    evaluating(trainer, [0.1, 0.2], every=3)
    trainer.fit()
    logged = {line["step"]: line["eval/dev/ndcg@10"] for line in metrics(tmp_path) if "eval/dev/ndcg@10" in line}
    assert logged == {3: 0.1, 6: 0.2}


def test_the_best_survives_a_resume(tmp_path):
    config = tiny_config(tmp_path)
    trainer = tiny_trainer(config)
    evaluating(trainer, [0.9, 0.1])
    trainer.total_steps = 2
    trainer.callbacks["evaluate"].on_end = lambda t, step: None  # a run that is stopped does not end
    trainer.fit()
    trainer.save(2)
    trainer.run._lock.close()
    again = tiny_trainer(config)
    evaluate = evaluating(again, [0.2] * 9)
    assert again.resume() == 2
    assert (evaluate.best, evaluate.best_step) == (0.9, 1)
    again.fit(2)
    assert evaluate.best_step == 1


def test_a_primary_that_nobody_measures_lists_what_is():
    assert primary_score(result(0.5), None) == ("dev/ndcg@10", 0.5)
    assert primary_score(result(0.5), "dev/mrr@10") == ("dev/mrr@10", 0.1)
    with pytest.raises(ConfigError, match=r"nobody measures 'dev/ndcg@1'.*dev/ndcg@10, dev/mrr@10"):
        primary_score(result(0.5), "dev/ndcg@1")


def test_wandb_offline_and_tensorboard_get_the_numbers(tmp_path):
    config = tiny_config(
        tmp_path, "trackers=[wandb,tensorboard]", "trackers.wandb.mode=offline", "training.max_steps=2", name="tracked"
    )
    train_tiny(config)
    folder = tmp_path / "tracked"
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert list(folder.glob("tensorboard/events.*"))


def test_a_rank_that_cannot_save_stops_them_all(tmp_path):
    messages = run_ranks(save_into_a_file, 2, tiny_config(tmp_path))
    assert "could not be written" in messages[0]
    assert "rank 0 could not save" in messages[1]


def save_into_a_file(config):
    trainer = tiny_trainer(config)
    if trainer.trackers:
        trainer.checkpoints.write_text("in the way")
    with pytest.raises(Exception) as caught:  # another class on each rank
        trainer.save(1)
    return str(caught.value)
