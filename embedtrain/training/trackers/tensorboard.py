"""TensorBoard event files in <run>/tensorboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedtrain.errors import ConfigError


class TensorBoardTracker:
    """Scalars by step. `tensorboard --logdir runs` shows all runs side by side."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "trackers.tensorboard: the package tensorboard is not installed. Run `pip install 'embedtrain[tensorboard]'`, "
                "or drop the tracker with trackers.tensorboard=null."
            ) from error
        self._make = SummaryWriter
        self._writer: Any = None

    def start(self, *, run_name: str, run_dir: str, config: dict[str, Any], resumed: bool) -> None:
        self._writer = self._make(str(Path(run_dir) / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
