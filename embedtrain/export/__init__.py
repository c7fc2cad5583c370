"""A trained encoder as a folder that others can load, and back.

Encoder --export--> <path>.partial --reload in a fresh process, compare--> <path>   (or <path>.rejected)
<path>, or any sentence-transformers folder --load_encoder--> Encoder

sentence_transformers.py   export: start here      layout.py    the files of the folder, old and new form
pooling.py  tokenizer.py   two parts of it         staging.py   whole or not there
probes.py   verify.py      the proof               modules/     the program and the module that run outside
record.py   model_card.py  README.md from the run's record
"""

from embedtrain.export.load import ModelFolder, load_encoder, read_model_folder
from embedtrain.export.model_card import model_card
from embedtrain.export.record import MetricRecord, RunRecord, SourceRecord
from embedtrain.export.sentence_transformers import ExportReport, check_exportable, export

__all__ = [
    "ExportReport",
    "MetricRecord",
    "ModelFolder",
    "RunRecord",
    "SourceRecord",
    "check_exportable",
    "export",
    "load_encoder",
    "model_card",
    "read_model_folder",
]
