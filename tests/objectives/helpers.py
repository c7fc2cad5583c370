"""Encoders, batches and objectives for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.backbones.bridge import BridgeBackbone
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.config.build import build
from embedtrain.config.compose import ROOT, compose_config
from embedtrain.data.collate import collate
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.types import RaggedTokens, TokenBatch, TrainingExample
from tests.helpers.models import DECODERS, tiny_model_dir

OBJECTIVES = sorted(path.stem for path in (ROOT / "configs" / "objective").glob("*.yaml"))
# what an objective is for, where it is not an encoder
ARCHITECTURE = {"causal_lm": "llama", "mntp": "llama", "reconstruction": "qwen3"}
ATTENTION = {"mntp": "bidirectional"}

WORDS = ["tax", "river", "the", "of", "piano", "seven", "cats", "run", "unbelievable", "photosynthesis", "green", "law"]


class FirstState(nn.Module):
    """[CLS], or the end of text where there is none, in the numbers of the states: fp64 stays fp64."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        return hidden[tokens.offsets[1:] - 1 if self.last else tokens.offsets[:-1]]


def folder_of(name: str, tmp_path) -> str:
    """A tiny model for the objective called `name`; of a bridge the encoder, the language model beside it."""
    if name == "bridge_alignment":
        tiny_model_dir("llama", tmp_path, vocab_size=30522, hidden_size=48)
    return tiny_model_dir(ARCHITECTURE.get(name, "bert"), tmp_path, vocab_size=30522)


def encoder_for(name: str, folder: str, *, kernel: str = "auto", prompts: Prompts | None = None, **options) -> Encoder:
    options = {"dropout": 0.0, "attention": ATTENTION.get(name), **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # adapters begin alike on all ranks
        if name == "bridge_alignment":
            llm = TransformerBackbone(name=f"{folder}/../tiny-llama", kernel=kernel, **options)
            backbone: nn.Module = BridgeBackbone(
                encoder=TransformerBackbone(name=folder, kernel=kernel, dropout=0.0), llm=llm
            )
        else:
            backbone = TransformerBackbone(name=folder, kernel=kernel, **options)
    decoder = ARCHITECTURE.get(name) in DECODERS
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=prompts or Prompts(),
        max_query_length=48,
        max_document_length=48,
        append_eos=decoder,
    )
    return Encoder(backbone=backbone, pooling=FirstState(last=decoder), tokenizer=tokenizer)


def objective_for(name: str, encoder: Encoder, **changes) -> nn.Module:
    """The YAML as it is, but for `changes`; new weights are the same every time, and larger than at a usual start."""
    node = compose_config([f"objective={name}"]).config["objective"]
    if name == "smae":
        node |= {"pairs": [[1, 8], [2, 20], [2, 32]]}  # of a model of two layers
    if name in ("mntp", "bridge_alignment"):
        node |= {"mask_token": "[MASK]"}
    node |= changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build(node, encoder=encoder)
        for parameter in objective.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return objective


def text(number: int) -> str:
    draw = torch.Generator().manual_seed(number)
    length = int(torch.randint(2, 14, (), generator=draw))
    return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=draw))


def examples(first: int, last: int) -> list[TrainingExample]:
    """Rows first .. last - 1 of one fixed batch: pairs, a hard negative here and there, and rows that are one text alone."""
    rows = []
    for i in range(first, last):
        query = text(3 * i)
        positives = (query,) if i % 3 == 2 else (text(3 * i + 1),)
        rows.append(
            TrainingExample(
                query=query, positives=positives, negatives=(text(3 * i + 2),) * (i % 2), source="some", row=f"file:{i}"
            )
        )
    return rows


def batch_of(first: int, last: int, encoder: Encoder) -> TokenBatch:
    return collate(examples(first, last), encoder.tokenizer)
