"""The data sets that `configs/data` names: what a mapping asks for is among the columns that the cards on the hub list."""

from __future__ import annotations

from typing import Any

import pytest

from embedtrain.config.compose import ROOT, compose_config
from embedtrain.data.sources.columns import Columns

_TRIPLET = ["anchor", "positive", "negative"]
_LISTS = ["query", "pos", "neg", "category", "type", "prompt", "pos_scores", "neg_scores"]
_HUNDRED = ["anchor", "positive", *(f"negative_{n}" for n in range(1, 101))]

# By data set, and by configuration where they differ: the columns as its card lists them.
COLUMNS: dict[str, list[str]] = {
    "BeastyZ/E5-R": ["query", "positive", "negative"],
    "BeastyZ/E5-R/synthetic": ["query", "positive", "negative", "instruction"],
    "C-MTEB/STSB": ["sentence1", "sentence2", "score"],
    "HuggingFaceFW/fineweb-edu": ["text", "id", "dump", "url", "file_path", "language", "score", "token_count"],
    "abhinand/MedEmbed-training-triplets-v1": ["query", "pos", "neg", "query_id", "pos_id", "neg_id"],
    "avsolatorio/medi-data-mteb_avs_triplets": ["query", "pos", "neg", "task_name", "query_instruct", "neg_instruct"],
    "cfli/bge-e5data": _LISTS,
    "cfli/bge-full-data": _LISTS,
    "cfli/msmarco_train_m3": ["query", "pos", "neg", "pos_scores", "neg_scores"],
    "nomic-ai/nomic-embed-supervised-data": ["query", "document", "negative", "dataset"],
    "nomic-ai/nomic-embed-unsupervised-data": ["query", "document", "dataset"],
    "princeton-nlp/datasets-for-simcse": ["text"],
    "sentence-transformers/all-nli/pair-score": ["sentence1", "sentence2", "score"],
    "sentence-transformers/all-nli/triplet": _TRIPLET,
    "sentence-transformers/amazon-qa": ["query", "answer"],
    "sentence-transformers/ccnews": ["title", "article"],
    "sentence-transformers/codesearchnet": ["comment", "code"],
    "sentence-transformers/gooaq": ["question", "answer"],
    "sentence-transformers/miracl": _HUNDRED,
    "sentence-transformers/mr-tydi": _HUNDRED,
    "sentence-transformers/msmarco-msmarco-distilbert-base-tas-b/triplet": ["query", "positive", "negative"],
    "sentence-transformers/msmarco-msmarco-distilbert-base-tas-b/triplet-50": ["query", *_HUNDRED[1:52]],
    "sentence-transformers/parallel-sentences-talks": ["english", "non_english"],
    "sentence-transformers/parallel-sentences-tatoeba": ["english", "non_english"],
    "sentence-transformers/s2orc": ["title", "abstract"],
    "sentence-transformers/sql-questions": ["query", *_HUNDRED[1:12]],
    "sentence-transformers/stackexchange-duplicates/post-post-pair": ["post1", "post2"],
    "sentence-transformers/stackexchange-duplicates/title-title-pair": ["title1", "title2"],
    "sentence-transformers/stsb": ["sentence1", "sentence2", "score"],
    "sentence-transformers/yahoo-answers": ["title", "answer"],
    # Whose cards were not at hand, as the options say: these hold that a mapping is of our form, and no more.
    "intfloat/multilingual_cc_news": ["title", "maintext"],
    "neuclir/csl": ["title", "abstract"],
    "wangrui6/Zhihu-KOL": ["INSTRUCTION", "RESPONSE"],
}


def tables() -> list[Any]:
    """Every distinct table of the hub that an option names, with its settings."""
    found: dict[tuple[str, str], Any] = {}
    for path in sorted((ROOT / "configs" / "data").glob("*.yaml")):
        for name, node in compose_config([f"data={path.stem}"]).config["data"]["sources"].items():
            if node["_target_"].endswith("HuggingFaceDataset"):
                found.setdefault((node["path"], str(node["name"])), pytest.param(node, id=f"{path.stem}-{name}"))
    return list(found.values())


@pytest.mark.parametrize("node", tables())
def test_a_mapping_fits_the_columns_of_the_card(node: dict[str, Any]) -> None:
    configuration = f"{node['path']}/{node['name']}"
    present = COLUMNS[configuration if configuration in COLUMNS else node["path"]]
    given = node["columns"]
    columns = Columns.recognised(present, "") if given is None else Columns.given(given, present, "")
    negatives = [name for name in present if name.startswith("neg") and not name.endswith(("scores", "id", "instruct"))]
    assert list(columns.negatives) == negatives, "hard negatives that the rows bring are read"
    assert bool(columns.scores) or node["score_range"] is None, "grades have a column"
