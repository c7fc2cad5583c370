"""What mines beside the training: `python -m embedtrain.training.mine_beside <job.json>`, begun by mining_process.py.

It builds the run's encoder, takes the copied weights, writes the version and ends. It also ends when the run does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from embedtrain import distributed
from embedtrain.assemble import build_encoder, build_sources
from embedtrain.config.build import build
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError, EmbedtrainError
from embedtrain.mining.job import write_version
from embedtrain.training.stages import take_over


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["parent"],), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        mine(job)
    except EmbedtrainError as error:
        sys.exit(f"error: {error}")


def mine(job: Mapping[str, Any]) -> None:
    """The version that the job asks for. Raises EmbedtrainError for what a user can mend."""
    if job["device"] == "cpu":
        torch.set_num_threads(job["threads"])
        os.nice(5)  # training goes first
    elif not torch.cuda.is_available():
        raise ConfigError(f"training.refresh.device={job['device']}: there is no such GPU.")
    config = job["config"]
    torch.manual_seed(config["run"]["seed"])
    encoder = build_encoder(config)
    if job["start"] is not None:
        take_over(encoder, Path(job["start"]))
    take_copy(encoder, Path(job["weights"]))
    encoder.to(distributed.device())
    encoder.encode_dtype = None if job["dtype"] is None else getattr(torch, job["dtype"])
    miner, sources = build(config["miner"]), build_sources(config)
    write_version(miner, sources, encoder, Path(job["version"]), step=job["step"], store=Path(job["store"]))


def take_copy(encoder: Encoder, weights: Path) -> None:
    """The trained weights of a running encoder, into one built of the same settings."""
    copied: dict[str, Any] = load_file(weights)
    own = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    if own.keys() != copied.keys():
        raise CheckpointError(f"{weights}: not the weights of this encoder.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(copied[name])


def _end_with(parent: int) -> None:
    """Ends this process when it is no longer that of `parent`; at once, where the run was killed while this one began."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
