"""Where this rank computes."""

from __future__ import annotations

import torch


def rank_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
