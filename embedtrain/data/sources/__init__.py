"""Where training rows come from: one class for each format, all giving `TrainingExample`."""

from embedtrain.data.sources.base import Source
from embedtrain.data.sources.jsonl import JsonLines

__all__ = ["JsonLines", "Source"]
