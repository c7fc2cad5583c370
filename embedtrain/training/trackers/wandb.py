"""Weights & Biases, online or offline (WANDB_MODE=offline needs no network)."""

from __future__ import annotations

from typing import Any

from embedtrain.errors import ConfigError


class WandbTracker:
    """One W&B run per run directory. The resolved config is its config; `train/*` and `eval/*` are its metrics.

    Args:
        project: W&B project. `WANDB_PROJECT` counts when null.
        entity: user or team; `WANDB_ENTITY` when null.
        mode: online | offline | disabled; `WANDB_MODE` when null.
        tags: of the run.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "trackers.wandb: the package wandb is not installed. Run `pip install 'embedtrain[wandb]'`, or drop the "
                "tracker with trackers.wandb=null."
            ) from error
        self._wandb = wandb
        self._settings: dict[str, Any] = {"project": project, "entity": entity, "mode": mode, "tags": tags}
        self._run: Any = None

    def start(self, *, run_name: str, run_dir: str, config: dict[str, Any], resumed: bool) -> None:
        self._run = self._wandb.init(
            name=run_name, dir=run_dir, config=config, resume="allow" if resumed else None, **self._settings
        )
        self._run.define_metric("train/*", step_metric="step")
        self._run.define_metric("eval/*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def finish(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
