"""What Fisher and RegMean measure of a model on rows, written to files: one model is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from embedtrain.backbones.bridge import Halves
from embedtrain.data.chunking import chunks
from embedtrain.encoder import Encoder, evaluating
from embedtrain.export.bridge import name_in_folder
from embedtrain.export.sentence_transformers import write_files
from embedtrain.merging.probe import all_tokens, contrast
from embedtrain.merging.weights import FolderWeights
from embedtrain.tensor_file import TensorFile
from embedtrain.types import RaggedTokens, TokenBatch

_TOKENS_AT_ONCE = 8192


def fisher(encoder: Encoder, loss: nn.Module, batches: Sequence[TokenBatch]) -> dict[str, Tensor]:
    """The mean over batches of the squared gradient of the loss, for every parameter by name."""
    named = dict(encoder.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    with evaluating(encoder):
        for batch in batches:
            value = contrast(loss, encoder(all_tokens(batch).to(encoder.device)), batch)
            gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.square() / len(batches)
    return total


def write_fisher(encoder: Encoder, measured: Mapping[str, Tensor], folder: Path) -> FolderWeights:
    """The Fisher information in the files of the model, in place of its weights, and so by their names.

    The encoder is of no use afterwards. What is no parameter has none.
    """
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(measured[name])
        for buffer in encoder.buffers():
            if buffer.is_floating_point():
                buffer.zero_()
    folder.mkdir(parents=True)
    write_files(encoder, folder, similarity="cosine", dtype="float32")
    return FolderWeights(folder)


def gram_matrices(encoder: Encoder, batches: Sequence[TokenBatch]) -> dict[str, Tensor]:
    """X^T X [in, in] over all tokens of the batches, for the weight of every linear layer of the backbone by name."""
    model: nn.Module = encoder.backbone.hf_model  # type: ignore[assignment]
    with evaluating(encoder), torch.no_grad(), _inputs_summed(model) as grams:
        for batch in batches:
            tokens = all_tokens(batch)
            for index in _pieces(encoder, tokens):
                encoder(tokens.select(index).to(encoder.device))
    return {name_in_folder(name): gram for name, gram in grams.items()} if isinstance(model, Halves) else grams


def write_grams(grams: Mapping[str, Tensor], path: Path) -> TensorFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: gram.cpu().contiguous() for name, gram in grams.items()}, path)
    return TensorFile(path)


@contextmanager
def _inputs_summed(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    grams: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = inputs[0].flatten(0, -2).float()
            gram = read.T @ read
            grams[name] = grams[name] + gram if name in grams else gram

        return layer.register_forward_pre_hook(add)

    handles = [watch(f"{n}.weight", layer) for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    try:
        yield grams
    finally:
        for handle in handles:
            handle.remove()


def _pieces(encoder: Encoder, tokens: RaggedTokens) -> Iterator[Tensor]:
    """Texts that are read together: for a backbone that pads, of one length, so that no input is of padding."""
    for index in chunks(tokens.lengths, _TOKENS_AT_ONCE):
        if getattr(encoder.backbone, "kernel", "ragged") == "ragged":
            yield index
            continue
        lengths = tokens.lengths[index]
        for length in lengths.unique():
            yield index[lengths == length]
