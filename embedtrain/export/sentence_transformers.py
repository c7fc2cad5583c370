"""An encoder as a sentence-transformers folder that is checked before it is called done.

One vector per text makes a SentenceTransformer, one per token a MultiVectorEncoder, weights over the vocabulary a
SparseEncoder. What sentence-transformers cannot compute (some poolings, views) travels in files that embedtrain reads.

1. Refuse what the layout cannot say.                                     check_exportable
2. Embed the probes with the encoder, in full precision.                  expected_embeddings
3. Write the folder beside its place.                                     write_files
4. Reload it in a fresh process and compare.                              verify
5. Rename it into place; or leave it as `<path>.rejected` and say which text differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from embedtrain.backbones.bridge import Halves
from embedtrain.backbones.contextual import FIRST_ENCODER
from embedtrain.backbones.loading import quiet_transformers
from embedtrain.backbones.quantise import rounded_weights
from embedtrain.backbones.soft_mask import refuse_half_open
from embedtrain.data.prompts import PLACEHOLDER, TEXT
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.bridge import BRIDGE, BRIDGE_NOTE, LANGUAGE_MODEL, write_connector
from embedtrain.export.contextual import check_contextual, write_context
from embedtrain.export.heads import write_heads
from embedtrain.export.model_card import Loading, model_card
from embedtrain.export.multi_vector import query_expansion
from embedtrain.export.pooling import (
    check_pooling,
    check_prompt_borders,
    is_ours_alone,
    kind_of,
    ships_code,
    write_pooling,
)
from embedtrain.export.probes import expected_embeddings, full_precision, probe_prompts, probe_texts
from embedtrain.export.prompts import write_templates
from embedtrain.export.record import RunRecord, with_facts_of
from embedtrain.export.sparse import TASK, language_model
from embedtrain.export.staging import beside, replace_folder, staged_folder
from embedtrain.export.tensors import save_linear
from embedtrain.export.tokenizer import save_tokenizer
from embedtrain.export.verify import MIN_COSINE, Verification, verify
from embedtrain.pooling.splade import SpladePooling

Dtype = Literal["float32", "bfloat16", "float16"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
_SLACK = 64 * 2**20  # bytes, for the tokenizer and the small files


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how it was checked."""

    path: Path
    worst_cosine: float  # between encoder and reloaded folder, over all probes and both roles
    num_probes: int
    verified_with: str
    notes: list[str]  # what a user of the folder should know; they stand in its card too


def export(
    encoder: Encoder,
    path: str | Path,
    *,
    probes: Sequence[str],
    record: RunRecord | None = None,
    similarity: Similarity = "cosine",
    dtype: Dtype = "float32",
) -> ExportReport:
    """Write `encoder` to the folder `path`, prove that the folder gives its embeddings, and report.

    probes: texts of the kind the model is for; hard ones (long, unicode, almost empty) are added.
    record: of the run, for the card; where it is silent, the encoder's own facts are added.
    similarity: what sentence-transformers' `model.similarity` shall compute between single dense vectors; the two other
        kinds of model have one of their own, MaxSim and the inner product.
    dtype: of the stored weights. The comparison runs in float32 on both sides.

    Raises ConfigError for an encoder that the layout cannot hold; CheckpointError when the disk is full or when the
    reloaded folder gives other embeddings: it is then left as `<path>.rejected` and `path` stays as it was.
    """
    path = Path(path)
    check_exportable(encoder)
    refuse_half_open(encoder)
    texts, notes = probe_texts(probes, encoder.tokenizer)
    expected = expected_embeddings(encoder, texts)
    with staged_folder(path, needed=_bytes(encoder, getattr(torch, dtype))) as partial:
        with full_precision(encoder):  # adapters are added to the weights before any rounding
            notes += write_files(encoder, partial, similarity=similarity, dtype=dtype)
        (partial / "README.md").write_text(_card(encoder, partial, record, similarity, notes), encoding="utf-8")
        result = verify(
            partial,
            texts,
            expected,
            prompts=probe_prompts(encoder.tokenizer.prompts),
            ours_alone=is_ours_alone(encoder),
        )
        if not result.passed:
            rejected = replace_folder(partial, beside(path, "rejected"))
            raise CheckpointError(_refusal(path, rejected, result))
    return ExportReport(path, result.worst_cosine, len(texts), result.verified_with, notes)


def check_exportable(encoder: Encoder) -> None:
    """Raises ConfigError when no folder can stand for `encoder`. Cheap: ask before training."""
    check_pooling(encoder)
    check_contextual(encoder)
    check_prompt_borders(encoder)


def write_files(encoder: Encoder, folder: Path, *, similarity: Similarity, dtype: Dtype) -> list[str]:
    """All files but the card, unchecked. Returns notes for the user of the folder."""
    tokenizer, pooling = encoder.tokenizer, encoder.pooling
    max_seq_length = max(tokenizer.max_length.values())
    stored = getattr(torch, dtype)
    splade = isinstance(pooling, SpladePooling)
    model = language_model(encoder, pooling) if splade else encoder.backbone.merged_model()  # type: ignore[operator,arg-type]
    notes = _save_models(model, folder, stored)
    behind = tokenizer.ids_behind(tokenizer.prompts.same_behind() or "")
    notes += save_tokenizer(tokenizer.hf, folder, append=tokenizer.eos_id, max_seq_length=max_seq_length, behind=behind)
    first = layout.TRANSFORMER
    if encoder.num_context:
        first = layout.CONTEXTUAL
        _save_backbone(encoder.backbone.get_submodule("first").merged_model(), folder / FIRST_ENCODER, stored)  # type: ignore[operator]
        write_context(encoder, folder)
    types = [(first, ""), *write_pooling(encoder, folder, stored)]
    kind = kind_of(pooling)
    if kind == "SentenceTransformer":
        types += _write_dense(encoder, folder, stored, first=len(types))
    write_heads(encoder, folder, stored, with_pooling=is_ours_alone(encoder))
    write_templates(tokenizer.prompts, folder)
    settings = {"max_seq_length": max_seq_length, "do_lower_case": False, **query_expansion(encoder)}
    bridge = BRIDGE if isinstance(model, Halves) else None
    layout.write_json(folder / "modules.json", layout.modules(types, bridge))
    layout.write_json(folder / "sentence_bert_config.json", {**settings, **(TASK if splade else {})})
    layout.write_json(
        folder / "config_sentence_transformers.json",
        layout.model_config(kind, tokenizer.prompts.exported(), _similarity(kind, similarity)),
    )
    return notes + _kind_notes(encoder) + _role_notes(encoder, max_seq_length)


def _write_dense(encoder: Encoder, folder: Path, dtype: torch.dtype, *, first: int) -> list[tuple[str, str]]:
    """Projection and norm of single vectors, numbered from `first`."""
    types = []
    if encoder.projection is not None:
        types.append((layout.DENSE, "Dense"))
        save_linear(encoder.projection, folder / f"{first}_Dense", dtype)
    if encoder.normalize:
        types.append((layout.NORMALIZE, "Normalize"))
        layout.write_json(folder / f"{first + len(types) - 1}_Normalize" / "config.json", {})
    return types


def _similarity(kind: layout.Kind, dense: str) -> str:
    return {"SentenceTransformer": dense, "MultiVectorEncoder": "maxsim", "SparseEncoder": "dot"}[kind]


def _save_models(model: PreTrainedModel | Halves, folder: Path, dtype: torch.dtype) -> list[str]:
    """The one model of a backbone, or the two of a bridge and what is between them."""
    if not isinstance(model, Halves):
        return _save_backbone(model, folder, dtype)
    notes = _save_backbone(model.encoder, folder, dtype)
    write_connector(model.connector, folder, dtype)
    return [*notes, BRIDGE_NOTE, *_save_backbone(model.llm, folder / BRIDGE / LANGUAGE_MODEL, dtype)]


def _save_backbone(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> list[str]:
    rounded = rounded_weights(model)
    weights = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in (model.state_dict() | rounded).items()
    }
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights)
    path = folder / "config.json"
    config = layout.read_json(path)
    name = str(dtype).removeprefix("torch.")
    config |= {"dtype": name, "torch_dtype": name}  # the second name is that of transformers 4
    layout.write_json(path, config)
    notes = []
    if config.get("is_causal") is False:
        notes.append(
            "The model is a decoder with bidirectional attention (`is_causal: false` in config.json). transformers before "
            "5.2 does not know the key and would run it causally, without a word and with worse embeddings."
        )
    if rounded:
        found = (
            "are on it: a quantiser of the same format loses nothing"
            if dtype == torch.float32
            else f"are near it, in {name}"
        )
        notes.append(f"{len(rounded)} weights were trained for a grid of few bits, and {found}.")
    if code := layout.code_beside(folder):
        notes.append(
            f"transformers has no {type(model).__name__}: the folder ships it as `{'`, `'.join(code)}`, and loading needs "
            "`trust_remote_code=True` and transformers 5 or newer. embedtrain runs its own copy and needs neither."
        )
    if getattr(model, "pooler", True) is None:
        notes.append(
            "On loading, transformers may report `pooler.dense` as missing. The model was trained without that layer and "
            "nothing reads it."
        )
    return notes


def _kind_notes(encoder: Encoder) -> list[str]:
    """What sentence-transformers leaves out of this folder, or needs for it."""
    notes = []
    kind = kind_of(encoder.pooling)
    if kind != "SentenceTransformer":
        notes.append(f"This is a `{kind}` of sentence-transformers 6 or newer.")
    if is_ours_alone(encoder):
        lacking = f"no {type(encoder.pooling).__name__}"
        if encoder.tokenizer.prompts.same_behind() is None:
            lacking = "no place for prompts that end behind the text, each role's in its own way,"
        notes.append(
            f"sentence-transformers has {lacking} and cannot load this folder. embedtrain can: `embedtrain.export.load_encoder`."
        )
    if encoder.num_context:
        notes.append(_context_note(encoder))
    if len(encoder.views):
        notes.append(
            f"The model has further embeddings of each text: {', '.join(encoder.views)}. sentence-transformers gives "
            "the first only; `embedtrain.export.load_encoder(folder).encode_embeddings(texts, views=True)` gives all."
        )
    return notes


def _context_note(encoder: Encoder) -> str:
    set_one = encoder.backbone.context is not None
    what = "a sample of the training documents" if set_one else "a learned vector that says nothing"
    return (
        f"Texts are read behind vectors of {encoder.num_context} other documents; in the folder lies {what}. Give it your own "
        f"corpus: `model[0].set_context(documents)`. sentence-transformers has no such module: the folder ships it as "
        f"`{layout.CONTEXTUAL_FILE}`, and loading needs `trust_remote_code=True` and sentence-transformers 5 or newer."
    )


def _role_notes(encoder: Encoder, max_seq_length: int) -> list[str]:
    """What differs by role or source and has only one place in the folder."""
    notes = []
    lengths = encoder.tokenizer.max_length
    if lengths["query"] != lengths["document"]:
        notes.append(
            f"Training cut queries at {lengths['query']} and documents at {lengths['document']} tokens. The folder has one "
            f"limit for both, {max_seq_length}; set `model.max_seq_length` to have the other."
        )
    if ships_code(encoder.pooling):
        notes.append(
            f"sentence-transformers has no latent attention: the folder ships it as `{layout.LATENT_ATTENTION_FILE}`, and "
            "loading needs `trust_remote_code=True` and sentence-transformers 3 or newer."
        )
    prompts = encoder.tokenizer.prompts
    for role, template in prompts.templates.items():
        if PLACEHOLDER in template:
            before = template.partition(TEXT)[0]
            notes.append(
                f"The {role} prompt takes an instruction, so `encode_{role}` has none by itself. Give what stands before the "
                f"text: `model.encode_{role}(texts, prompt={before!r})` with your task in place of `{PLACEHOLDER}`."
            )
    for source in prompts.sources:
        notes.append(
            f"The source {source} was trained with prompts of its own: use "
            f'`prompt_name="{source}_query"` and `"{source}_document"` where they are listed.'
        )
    return notes


def _card(encoder: Encoder, folder: Path, record: RunRecord | None, similarity: str, notes: list[str]) -> str:
    kind = kind_of(encoder.pooling)
    record = with_facts_of(encoder, record or RunRecord(), similarity=_similarity(kind, similarity))
    loading = Loading(
        kind=kind,
        trust_remote_code=ships_code(encoder.pooling)
        or (folder / layout.BRIDGE_FILE).exists()
        or bool(encoder.num_context)
        or bool(layout.code_beside(folder)),
        ours_alone=is_ours_alone(encoder),
    )
    return model_card(record, notes=notes, loading=loading)


def _refusal(path: Path, rejected: Path, result: Verification) -> str:
    text = result.worst_text if len(result.worst_text) <= 80 else result.worst_text[:77] + "..."
    return (
        f"export refused: {path}, reloaded with {result.verified_with}, does not give the encoder's embeddings. Worst cosine "
        f"{result.worst_cosine:.6f} (must exceed {MIN_COSINE}), for the {result.worst_role} {text!r}; vector lengths differ "
        f"by up to {result.length_error:.2%}. The folder was left as {rejected} to look into; the run's checkpoints are "
        "untouched, so the export can be repeated."
    )


def _bytes(encoder: Encoder, dtype: torch.dtype) -> int:
    return encoder.num_parameters() * dtype.itemsize + _SLACK
