"""`embedtrain mine`: from a config to rows with hard negatives, and a report to read before training on them.

    <output>/<source>.jsonl ...   rows, in the format that was asked for
    <output>/report.html          the audit, to look at; report.json: the same for programs
    <output>/config.yaml          what was asked

The folder gets its name when all is in it.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from embedtrain import distributed
from embedtrain.assemble import build_encoder, build_sources
from embedtrain.config.build import build
from embedtrain.data.sources import Source
from embedtrain.data.writers import WRITERS, MinedRow
from embedtrain.data.writers.files import file_name
from embedtrain.encoder import Encoder
from embedtrain.environment import command_line
from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.audit import Audit, audit, summary_lines, write_audit
from embedtrain.mining.miner import MinedSource, Miner
from embedtrain.mining.records import NO_DOCUMENT, REASONS
from embedtrain.store.ranks import on_main

log = logging.getLogger("embedtrain")


def run_mining(config: Mapping[str, Any], *, output: Path, form: str) -> list[str]:
    """Mines for every source of a config. Returns what to tell the user. Every rank calls it.

    form: a name of `WRITERS`. Raises ConfigError where the output folder is taken, DataError where it cannot be written, else
    as `Miner.mine`.
    """
    partial = on_main(lambda: _start(output))
    try:
        return _mined_into(partial, config, output=output, form=form)
    except BaseException:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _mined_into(partial: Path, config: Mapping[str, Any], *, output: Path, form: str) -> list[str]:
    """Everything is written to `partial`, which becomes `output` in the end."""
    miner: Miner = build(config["miner"])
    sources = build_sources(config)
    encoder = encoder_of(config, miner)
    audits: dict[str, Audit] = {}
    said: list[str] = []

    def write(name: str, found: MinedSource) -> list[str]:
        rows = rows_with_negatives(found, sources[name], keep_own=miner.own_negatives == "keep")
        written = WRITERS[form](partial, file_name(name), rows)
        audits[name] = audit(
            found.data,
            found.mined,
            scored_by=found.scored_by,
            rescored=found.is_rescored,
            facts=found.facts,
            seed=miner.seed,
        )
        files = ", ".join(str(output / file.relative_to(partial)) for file in written.files)
        lost = [
            f"{form} has no place for {what.replace('_', ' ')}: {rows:,} rows" for what, rows in written.lost.items()
        ]
        return [
            f"{name}: {written.rows:,} rows -> {files}",
            *(f"  {line}" for line in lost + summary_lines(audits[name])),
        ]

    for name, source in sources.items():
        found = miner.mine(source, name, encoder)
        said += on_main(lambda name=name, found=found: write(name, found))  # type: ignore[misc]
    on_main(lambda: _finish(partial, output, audits, config))
    return [*said, f"report: {output / 'report.html'}"] if distributed.is_main() else []


def _start(output: Path) -> Path:
    """An empty folder beside `output`, in which all is written."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output={output}: is there already. Choose another folder, or remove it.")
    partial = output.absolute().with_name(f"{output.absolute().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"output={output}: no folder can be made there ({error}). Choose another place.") from error
    return partial


def _finish(partial: Path, output: Path, audits: Mapping[str, Audit], config: Mapping[str, Any]) -> None:
    """The report, the config, and the folder's name."""
    write_audit(partial, audits, {"config": dict(config), "command": command_line()})
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    try:
        (partial / "config.yaml").write_text(text, encoding="utf-8")
        partial.rename(output)
    except OSError as error:
        raise DataError(
            f"output={output}: cannot be written ({error}). Choose another place; what was embedded is kept in the store."
        ) from error


def encoder_of(config: Mapping[str, Any], miner: Miner) -> Encoder | None:
    """The encoder of the config, where the miner searches by it."""
    if miner.model is not None or not miner.search.reads_vectors:
        return None
    return build_encoder(config).to(distributed.device())


def rows_with_negatives(found: MinedSource, source: Source, *, keep_own: bool) -> Iterator[MinedRow]:
    """The rows of a source whose query was kept, with their negatives and how each came to be one."""
    data, mined = found.data, found.mined
    for row, example in enumerate(source):
        query = int(data.query_of_row[row])
        if not mined.kept_queries[query]:
            continue
        own = example.negatives if keep_own else ()
        there = [
            k
            for k, document in enumerate(mined.documents[query].tolist())
            if document != NO_DOCUMENT and data.documents[document] not in own
        ]
        texts = tuple(data.documents[document] for document in mined.documents[query, there].tolist())
        scores = [float(score) for score in mined.scores[query, there].tolist()]
        first = int(data.positive_offsets[query])
        place = {data.documents[d]: first + i for i, d in enumerate(data.positives_of(query).tolist())}
        of_positives = [float(mined.positive_scores[place[text]]) for text in example.positives]
        yield MinedRow(
            example=replace(
                example,
                negatives=own + texts,
                scores=(*of_positives, *(math.nan for _ in own), *scores),
                source="",
            ),
            negative_scores=(*(None for _ in own), *scores),
            ranks=(*(0 for _ in own), *mined.ranks[query, there].tolist()),
            reasons=(*("own" for _ in own), *(REASONS[reason] for reason in mined.reasons[query, there].tolist())),
            scored_by=found.scored_by,
        )
