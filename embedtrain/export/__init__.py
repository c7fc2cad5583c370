"""A trained encoder as a folder that others can load, and back.

Encoder --export--> <path>.partial --reload in a fresh process, compare--> <path>   (or <path>.rejected)
<path> or any sentence-transformers folder --load_encoder--> Encoder
"""

from embedtrain.export.model_card import model_card
from embedtrain.export.record import MetricRecord, RunRecord, SourceRecord

__all__ = ["MetricRecord", "RunRecord", "SourceRecord", "model_card"]
