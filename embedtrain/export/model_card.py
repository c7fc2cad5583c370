"""The README.md of an exported model, written from the run's own record.

Only facts of the record are written. What is missing is left out, and where it is missing because nothing was measured,
the section on limits says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import yaml

from embedtrain.export.layout import Kind
from embedtrain.export.record import MergeRecord, MetricRecord, RunRecord

# A folder is no name that anybody else could look up; the card gives its last part and no link.
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")

_USAGE = """\
```python
from sentence_transformers import {kind}

model = {kind}({arguments})
queries = model.encode_query(["how do I read a file line by line?"])
documents = model.encode_document(["with open(path) as lines:\\n    for line in lines: ..."])
scores = model.similarity(queries, documents)
```
"""
_OUR_USAGE = """\
```python
from embedtrain.export import load_encoder

model = load_encoder({arguments})
queries = model.encode_embeddings(["how do I read a file line by line?"], role="query")
documents = model.encode_embeddings(["with open(path) as lines:\\n    for line in lines: ..."], role="document")
```
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How the folder is loaded."""

    kind: Kind = "SentenceTransformer"
    trust_remote_code: bool = False  # the folder ships a module of its own, so loading needs the flag
    ours_alone: bool = False  # sentence-transformers cannot load it, embedtrain can


_PLAIN = Loading()
_MAKES = {
    "SentenceTransformer": "it maps a text to a vector of {} numbers",
    "MultiVectorEncoder": "it maps a text to a vector of {} numbers for each of its tokens",
    "SparseEncoder": "it maps a text to weights over a vocabulary of {} words, most of them 0",
}


def model_card(record: RunRecord, *, notes: Sequence[str] = (), loading: Loading = _PLAIN) -> str:
    """README.md with YAML front matter. `notes`: what the export has to say about the folder (one sentence each)."""
    sections = [
        _front_matter(record, loading),
        f"# {record.name or 'Text embedding model'}\n",
        _what(record, loading),
        _section("Use", _use(record, loading)),
        _section("Notes on this folder", _bullets(notes)),
        _section("Evaluation", _evaluation(record.metrics)),
        _section("Merge", _merge(record.merge)),
        _section("Training data", _sources(record)),
        _section("Training", _training(record)),
        _section("Repeat it", f"```sh\n{record.command}\n```\n" if record.command else ""),
        _section("Limits", _bullets(_limits(record))),
    ]
    return "\n".join(section for section in sections if section)


def _front_matter(record: RunRecord, loading: Loading) -> str:
    library = "embedtrain" if loading.ours_alone else "sentence-transformers"
    tags = [library, "feature-extraction", "sentence-similarity", "embedtrain", *(["merge"] if record.merge else [])]
    fields: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": "sentence-similarity",
        "tags": list(dict.fromkeys(tags)) + (["custom_code"] if loading.trust_remote_code else []),
        "language": list(record.language),
        "license": record.license,
        "base_model": _base_models(record),
        "base_model_relation": "merge" if record.merge and _base_models(record) else None,
        "datasets": list(record.datasets),
    }
    kept = {key: value for key, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n"


def _base_models(record: RunRecord) -> str | list[str] | None:
    """Those that can be looked up on the hub."""
    if record.merge is None:
        return record.base_model if _HUB_NAME.fullmatch(record.base_model or "") else None
    return list(record.merge.published)


def _what(record: RunRecord, loading: Loading) -> str:
    first = "A text embedding model"
    if record.embedding_dim:
        first += f": {_MAKES[loading.kind].format(record.embedding_dim)}"
    if record.merge:
        first += f". It was merged from {len(record.merge.models)} models by `{record.merge.method}`"
    elif record.base_model:
        name = record.base_model if _HUB_NAME.fullmatch(record.base_model) else PurePath(record.base_model).name
        first += f". It was trained from `{name}`"
    rows: list[tuple[str, object]] = [
        ("Architecture", record.architecture),
        ("Attention", record.attention),
        ("Pooling", record.pooling),
        ("Prompt tokens pooled", _yes_no(record.pool_prompt)),
        ("Unit length", _yes_no(record.normalize)),
        ("Embedding dimension", record.embedding_dim),
        ("Longest query", _tokens(record.max_query_length)),
        ("Longest document", _tokens(record.max_document_length)),
        ("Similarity", record.similarity),
        ("Parameters", _thousands(record.num_parameters)),
        ("Trained parameters", _thousands(record.num_trainable)),
    ]
    return first + ".\n\n" + _table(("", ""), [row for row in rows if row[1] is not None])


def _use(record: RunRecord, loading: Loading) -> str:
    name = record.name or "path/to/this/folder"
    arguments = f'"{name}"' + (", trust_remote_code=True" if loading.trust_remote_code else "")
    text = (_OUR_USAGE if loading.ours_alone else _USAGE).format(kind=loading.kind, arguments=arguments)
    prompts = {role: prompt for role, prompt in record.prompts.items() if prompt}
    if prompts:
        text += (
            "\nA prompt is put before each text:\n\n"
            if loading.ours_alone
            else (
                "\n`encode_query` and `encode_document` put these prompts before each text; plain `encode` does not:\n\n"
            )
        )
        text += _table(("role", "prompt"), [(role, _code(prompt)) for role, prompt in prompts.items()])
    return text


def _evaluation(metrics: Sequence[MetricRecord]) -> str:
    if not metrics:
        return ""
    rows = [
        (m.evaluator, m.metric, _number(m.before), _number(m.after), _difference(m), _interval(m.interval))
        for m in metrics
    ]
    header = ("evaluation", "metric", "before", "after", "difference", "95 % interval")
    # A column that no metric fills says nothing.
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return _table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def _merge(merge: MergeRecord | None) -> str:
    """The models with what each was given, then what holds for all of them."""
    if merge is None:
        return ""
    own = {key: value for key, value in merge.parameters.items() if isinstance(value, list | tuple)}
    rows = [
        (_code(name), *(_significant(value[number]) for value in own.values()))
        for number, name in enumerate(merge.models)
    ]
    shared = [
        (key, _significant(value)) for key, value in merge.parameters.items() if key not in own and value is not None
    ]
    text = f"Method: {merge.method}" + (f", from the base {_code(merge.base)}" if merge.base else "") + "\n\n"
    return text + _table(("model", *own), rows) + ("\n" + _table(("parameter", ""), shared) if shared else "")


def _significant(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sources(record: RunRecord) -> str:
    if not record.sources:
        return ""
    rows = [(s.name, _thousands(s.rows) or "", _number(s.weight)) for s in record.sources]
    used = [i for i in range(3) if any(row[i] for row in rows)]
    header = ("source", "rows", "weight")
    return _table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def _training(record: RunRecord) -> str:
    lines = []
    if record.loss:
        lines.append(f"Loss: {record.loss}")
    if record.negatives:
        lines.append(f"Candidates: {record.negatives}")
    if record.seconds is not None:
        lines.append(f"Time: {record.seconds:,.0f} s")
    text = _bullets(lines)
    for title, mapping in (("hyper-parameter", record.hyper_parameters), ("environment", record.environment)):
        if mapping:
            text += "\n" + _table((title, ""), [(key, _code(str(value))) for key, value in mapping.items()])
    return text


def _limits(record: RunRecord) -> list[str]:
    limits = list(record.limits)
    if not record.metrics:
        limits.append(
            f"The quality of this model was not measured {'when it was merged' if record.merge else 'by its run'}."
        )
    elif any(m.interval is None for m in record.metrics):
        limits.append("Where no interval is given, the uncertainty of the difference was not measured.")
    return limits


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text.strip() else ""


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _code(text: str) -> str:
    """Text as inline code, its line breaks visible: a prompt's last newline is part of the prompt."""
    shown = text.encode("unicode_escape").decode("ascii") if any(c in text for c in "\n\t\r") else text
    return f"`{shown}`" if "`" not in shown else f"`` {shown} ``"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".") if value == int(value) else f"{value:.4f}"


def _difference(metric: MetricRecord) -> str:
    return "" if metric.before is None or metric.after is None else f"{metric.after - metric.before:+.4f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _thousands(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _tokens(value: int | None) -> str | None:
    return None if value is None else f"{value:,} tokens"


def _yes_no(value: bool | None) -> str | None:
    return None if value is None else ("yes" if value else "no")
