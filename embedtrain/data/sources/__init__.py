"""Where training rows come from: one class for each format, all giving `TrainingExample`."""

from embedtrain.data.sources.augmented import Augmented
from embedtrain.data.sources.base import Source
from embedtrain.data.sources.beir import BeirFolder
from embedtrain.data.sources.chunked import ChunkedDocuments
from embedtrain.data.sources.jsonl import JsonLines
from embedtrain.data.sources.labeled import LabeledTexts
from embedtrain.data.sources.labeled_list import LabeledList
from embedtrain.data.sources.listwise import ListwisePrompts
from embedtrain.data.sources.pairs import PairsFile
from embedtrain.data.sources.tables import Csv, HuggingFaceDataset, Parquet
from embedtrain.data.sources.tevatron import Tevatron
from embedtrain.data.sources.texts import Texts
from embedtrain.data.sources.worked_examples import WorkedExamples

__all__ = [
    "Augmented",
    "BeirFolder",
    "ChunkedDocuments",
    "Csv",
    "HuggingFaceDataset",
    "JsonLines",
    "LabeledList",
    "LabeledTexts",
    "ListwisePrompts",
    "PairsFile",
    "Parquet",
    "Source",
    "Tevatron",
    "Texts",
    "WorkedExamples",
]
