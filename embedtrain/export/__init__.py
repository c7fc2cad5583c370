"""A trained encoder as a folder that others can load, and back.

Encoder --export--> <path>.partial --reload in a fresh process, compare--> <path>   (or <path>.rejected)
<path>, any sentence-transformers folder, or a published layout --load_encoder--> Encoder

sentence_transformers.py   export: start here        load.py  folder.py   the way back; what a folder says
layout.py   tensors.py     the files of the folder, old and new form
pooling.py  tokenizer.py   two parts of it           multi_vector.py  sparse.py   the two other kinds of model
published/                 layouts of published models that are more than sentence-transformers folders
bridge.py                  an encoder and a language model in a folder, and what is between them
contextual.py              two encoders in a folder, and the vectors of a context
heads.py                   what only embedtrain reads: further views, poolings that sentence-transformers lacks
probes.py   verify.py      the proof                 modules/     the program and the module that run outside
record.py   model_card.py  README.md from the run's record           staging.py   whole or not there
"""

from embedtrain.export.folder import ModelFolder, read_model_folder
from embedtrain.export.load import load_encoder
from embedtrain.export.model_card import model_card
from embedtrain.export.record import MergeRecord, MetricRecord, RunRecord, SourceRecord
from embedtrain.export.sentence_transformers import ExportReport, check_exportable, export

__all__ = [
    "ExportReport",
    "MergeRecord",
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
