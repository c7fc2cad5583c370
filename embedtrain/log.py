"""What a run says: on rank 0's console and in its log.txt."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm

LOGGER = "embedtrain"
_COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m"}
_RESET = "\033[0m"


class _Console(logging.Handler):
    """Lines on stdout that leave a progress bar in its place. Warnings are marked, and coloured on a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
            if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
                text = f"{_COLOURS[min(record.levelno, logging.ERROR)]}{text}{_RESET}"
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def start(directory: Path | None = None, *, main: bool = True) -> None:
    """Set up the logger `embedtrain`. On rank 0: console, and `directory`/log.txt (appended); on others only errors."""
    logger = logging.getLogger(LOGGER)
    stop()
    logger.propagate = False
    logger.setLevel(logging.INFO if main else logging.ERROR)
    logger.addHandler(_Console())
    if main and directory is not None:
        file = logging.FileHandler(directory / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(file)


def stop() -> None:
    """Take the handlers off again and close the file."""
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
