"""A frozen model that embeds the texts of each batch while the student trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from embedtrain.data.chunking import chunks
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.export.load import load_encoder, local_folder
from embedtrain.teachers.texts import RoleTexts, texts_of
from embedtrain.types import RaggedTokens, TeacherInput, TrainingExample


class OnlineTeacher:
    """Embeds every text of every batch, with its own tokenizer, prompts and lengths; costs one forward pass of the teacher.

    For a fixed set of texts that is seen more than once, CachedTeacher does that once. The weights are read by `load`, on
    the device of the step; until then the teacher is a tokenizer and a size, and as that it travels to the workers.

    model                a folder, a run directory, package://<package>/<folder>, or a name on the model hub
    prompts              {query: ..., document: ...} put before its texts; null: as the model's folder says
    max_query_length,
    max_document_length  tokens; null: as the model's folder says
    dtype                numbers of its arithmetic: float32 | bfloat16
    chunk_tokens         tokens of one forward pass; changes memory, never the result
    """

    def __init__(
        self,
        *,
        model: str,
        prompts: Mapping[str, str] | None = None,
        max_query_length: int | None = None,
        max_document_length: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        chunk_tokens: int = 16384,
    ) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype={dtype}: expected float32 or bfloat16.")
        unknown = set(prompts or {}) - {"query", "document"}
        if unknown:
            raise ConfigError(f"prompts: expected query and document, got {', '.join(sorted(unknown))}.")
        self.model = model
        self.folder = local_folder(model)
        self.dtype = dtype
        self.chunk_tokens = chunk_tokens
        with torch.device("meta"):  # shapes and tokenizer, no weights
            shell = load_encoder(self.folder, backbone={"weights": "random"})
        self.dim = shell.embedding_dim
        self.tokenizer = _tokenizer(shell.tokenizer, prompts, max_query_length, max_document_length)
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}  # weights stay where they are

    def load(self, device: torch.device | str) -> None:
        """Reads the weights. Once per run, before the first step."""
        encoder = load_encoder(self.folder).requires_grad_(False).eval()
        encoder.backbone.to(getattr(torch, self.dtype))
        self._encoder = encoder.to(device)

    @property
    def loaded(self) -> bool:
        return self._encoder is not None

    def prepare(self, examples: Sequence[TrainingExample]) -> TeacherInput:
        """Tokens of the examples' texts; runs in worker processes."""
        queries, documents = texts_of(examples)
        return TeacherInput(self.tokens(queries), self.tokens(documents))

    def embed(self, inputs: TeacherInput) -> tuple[Tensor, Tensor]:
        """Queries [Q, E'] and documents [D, E'] of unit length, fp32. Raises TrainingError where they are not finite."""
        assert isinstance(inputs.queries, RaggedTokens)
        assert isinstance(inputs.documents, RaggedTokens)
        vectors = self.encode(RaggedTokens.cat([inputs.queries, inputs.documents]))
        return vectors[: len(inputs.queries)], vectors[len(inputs.queries) :]

    @torch.no_grad()
    def encode(self, tokens: RaggedTokens) -> Tensor:
        """Embeddings [N, E'] of unit length, fp32, on the teacher's device."""
        if self._encoder is None:
            raise TrainingError(f"the teacher {self.model} has no weights yet: `load` comes before `embed`.")
        device = self._encoder.device
        vectors = torch.empty(len(tokens), self.dim, device=device)
        half = self.dtype != "float32"
        with torch.autocast(device.type, dtype=getattr(torch, self.dtype) if half else None, enabled=half):
            for index in chunks(tokens.lengths, self.chunk_tokens):
                vectors[index.to(device)] = self._encoder(tokens.select(index)).values.float()
        if not torch.isfinite(vectors).all():
            raise TrainingError(
                f"the teacher {self.model} gives embeddings that are not finite. Use dtype=float32, or another teacher."
            )
        return F.normalize(vectors, dim=-1)

    def tokens(self, texts: RoleTexts) -> RaggedTokens:
        return self.tokenizer.encode(texts.texts, role=texts.role, instructions=texts.heeded(self.tokenizer.prompts))[0]

    def identity(self) -> dict[str, Any]:
        """What its vectors depend on: a store of another identity holds other vectors. Reads the weights' files once."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        settings = {p for p in files if p.suffix == ".json" and not p.name.startswith("tokenizer")}
        return {
            "weights": _digest(self.folder, [path for path in files if path.suffix in (".safetensors", ".bin", ".pt")]),
            "tokenizer": _digest(
                self.folder, [p for p in files if p.name.startswith(("tokenizer", "vocab", "merges"))]
            ),
            "modules": _digest(self.folder, sorted(settings)),
            "prompts": dict(self.tokenizer.prompts.templates),
            "pool_prompt": self.tokenizer.prompts.pool_prompt,
            "max_query_length": self.tokenizer.max_length["query"],
            "max_document_length": self.tokenizer.max_length["document"],
            "dtype": self.dtype,
            "normalize": True,
            "dim": self.dim,
        }


def _tokenizer(
    own: TextTokenizer, prompts: Mapping[str, str] | None, query_length: int | None, document_length: int | None
) -> TextTokenizer:
    """The model's tokenizer with other prompts and lengths where they are given."""
    templates = {**own.prompts.templates, **(prompts or {})}
    return TextTokenizer(
        tokenizer=own.hf,
        prompts=Prompts(query=templates["query"], document=templates["document"], pool_prompt=own.prompts.pool_prompt),
        max_query_length=query_length or own.max_length["query"],
        max_document_length=document_length or own.max_length["document"],
        append_eos=own.append_eos,
    )


def _digest(folder: Path, files: Sequence[Path]) -> str:
    """One hash of the names and contents of files, wherever the folder lies."""
    digest = xxhash.xxh3_128()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
