"""What is done with a finished model: measure it, turn texts into vectors, or let it teach."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from embedtrain import distributed
from embedtrain.assemble import build_evaluators, build_sources, build_teachers
from embedtrain.errors import ConfigError, DataError
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.export.load import load_encoder
from embedtrain.teachers.cached import CachedTeacher
from embedtrain.teachers.fill import Filled, fill
from embedtrain.teachers.joined import JoinedTeacher
from embedtrain.types import Role

log = logging.getLogger("embedtrain")


def evaluate_model(model: str, config: Mapping[str, Any], *, dim: int | None = None) -> dict[str, EvaluationResult]:
    """What each evaluator says of a model folder or hub name, the same on all ranks, which share the work.

    dim: as in `load_encoder`.
    """
    encoder = load_encoder(model, dim=dim).to(distributed.device())
    return {
        name: evaluator(encoder, show_progress=distributed.is_main())
        for name, evaluator in build_evaluators(config).items()
    }


def embed_file(
    model: str, texts: Path, output: Path, *, role: Role, dim: int | None = None, context: Path | None = None
) -> tuple[int, int]:
    """One vector for each line of `texts`, as float32 [N, E] in `output` (.npy). Returns (N, E).

    context: documents of the corpus, a line each, for a model that reads some in front of each text; None: those in its folder.
    """
    lines = read_lines(texts)
    encoder = load_encoder(model, dim=dim).to(distributed.device())
    if context is not None:
        if not encoder.num_context:
            raise ConfigError(f"context={context}: {model} reads no documents in front of a text. Leave it out.")
        encoder.set_context(read_lines(context))
    vectors = encoder.encode(lines, role=role, show_progress=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    np.save(output, vectors.numpy())
    return vectors.shape[0], vectors.shape[1]


def teach(config: Mapping[str, Any], name: str) -> Filled:
    """Embeds all texts of a run's sources by the teacher `name` into its store, each once. Every rank calls it.

    Raises ConfigError where the config has no such teacher, or one that keeps no store.
    """
    teachers = build_teachers(config)
    if name not in teachers:
        raise ConfigError(
            f"teacher={name}: the config has {', '.join(teachers) or 'no teachers'}. Add it under teachers."
        )
    teacher = teachers[name]
    stores = [teacher] if isinstance(teacher, CachedTeacher) else []
    if isinstance(teacher, JoinedTeacher):
        stores = teacher.stores
    if not stores:
        raise ConfigError(
            f"teacher={name}: it keeps no store, so there is nothing to fill. For one that does: teacher@teachers.{name}=cached"
        )
    sources = build_sources(config).values()
    rows = sum(len(source) for source in sources)
    filled = [fill(store, chain.from_iterable(sources), rows=rows, device=distributed.device()) for store in stores]
    return Filled(encoded=sum(f.encoded for f in filled), there=sum(f.there for f in filled))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Raises DataError for one that is empty, since an empty text has no meaning to embed."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path.absolute()}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{number}: not UTF-8. Convert the file: iconv -t utf-8.") from None
    if not text:
        raise DataError(f"{path}: an empty file. Expected one text a line.")
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path}:{number}: an empty line. Expected one text a line.")
    return lines
