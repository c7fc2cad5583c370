"""Which rows are alike: k-means over their embeddings. `embedtrain.data.neighbourhoods` makes batches of them.

The clusters are found once, at the start of a run. The run is a function of them: one that goes on reads them
(`cluster_files.py`) and never finds them again. They are numbered along a walk from each to the nearest one not yet visited, so
that near numbers are near clusters, and what is left over of some makes batches with what is left over of their neighbours
(CDE's code packs its batches so).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.data.mixture import Mixture
from embedtrain.data.prompts import PLACEHOLDER
from embedtrain.data.sources import Source
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.export.load import load_encoder
from embedtrain.mining import cluster_files
from embedtrain.mining.clustering import Clustering
from embedtrain.mining.identity import identity
from embedtrain.store.ranks import on_main
from embedtrain.types import Role, TrainingExample

log = logging.getLogger("embedtrain")

# Rows of a block, which one rank embeds as a whole and sends to rank 0. A vector may differ in its last bits by what is embedded
# with it, so blocks are the same for any number of ranks, and with them the clusters.
_ROWS_AT_ONCE = 1024


class KMeans:
    """Clusters of the rows of each source, by spherical k-means over their embeddings.

    Contextual Document Embeddings (CDE, arXiv:2410.02525, section 4.1) looks for batches that are as hard as can be: a large
    sum of s(q, d') + s(q', d) over their pairs of rows. With embed=both a row is the sum of its query and its first positive,
    on the unit sphere, so that the product of two rows is just that, plus s(q, q') + s(d, d'). CDE's code joins the two vectors
    end to end, in both orders, and lets both orders of each row train the centroids: where both fall into one cluster, that is
    the same comparison at four times the numbers. TAS-B (arXiv:2104.06967) clusters queries: embed=query, with clusters of many
    batches.

    Cost: one embedding of all rows, shared by the ranks; on rank 0, 4 E bytes for each row and 2 x rows x clusters x E
    operations for each iteration. A GPU is used where faiss was built for one.

    model             what embeds the rows, with its own prompts and lengths; None: the run's encoder, as it is at the start
    rows_per_cluster  on average; None: the rows that share negatives, which are a batch of the source, or with
                      training.gather=false a rank's part of a micro-batch
    embed             query, positive (the first of the row) or both
    iterations        at most: k-means ends when no centroid moves
    seed              of the first centroids, and of the rows that train them
    train_points      rows that the centroids are learned from; None: all
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        rows_per_cluster: int | None = None,
        embed: Literal["query", "positive", "both"] = "both",
        iterations: int = 25,
        seed: int = 0,
        train_points: int | None = None,
    ) -> None:
        for key, value, least in (
            ("rows_per_cluster", rows_per_cluster, 2),
            ("iterations", iterations, 1),
            ("seed", seed, 0),
            ("train_points", train_points, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"data.neighbourhoods.{key}={value}: expected at least {least}.")
        if embed not in ("query", "positive", "both"):
            raise ConfigError(f"data.neighbourhoods.embed={embed!r}: expected query, positive or both.")
        self.model = model
        self.rows_per_cluster = rows_per_cluster
        self.embed = embed
        self.iterations = iterations
        self.seed = seed
        self.train_points = train_points

    def clusters_of(
        self,
        mixture: Mixture,
        *,
        batch_size: int,
        encoder: Encoder,
        run_dir: Path,
        softmaxes: tuple[int, int] = (1, 1),
    ) -> dict[str, Ints]:
        """The cluster of each row of each source [R]. Every rank calls it, and all get the same.

        batch_size   queries of a global batch, for sources that do not say their own
        softmaxes    (micro-batches, ranks) that share no negatives: a cluster for each of them
        run_dir      of the run or the stage. With a checkpoint in it, the clusters are those that it began with

        Raises CheckpointError where those are gone or damaged, TrainingError where they are of other rows.
        """
        folder = cluster_files.folder_of(run_dir)
        rows = {name: index.fingerprint for name, index in zip(mixture.names, mixture.indexes, strict=True)}

        def begun() -> dict[str, Ints] | None:
            if not cluster_files.has_checkpoint(run_dir):
                return None
            return {name: cluster_files.read_begun(folder, name, rows[name]) for name in rows}

        found = on_main(begun)
        if found is not None:
            return found
        model = self._load(encoder)
        prompts = model.tokenizer.prompts
        by = {
            "model": self.model,
            "identity": {**identity(model), "prompts": [prompts.templates, prompts.sources, prompts.instructions]},
            "computed_in": str(model.encode_dtype or torch.float32),
        }
        return {
            name: self._of_source(
                name,
                source,
                model,
                count=self.num_clusters(len(source), max(1, (source.batch_size or batch_size) // math.prod(softmaxes))),
                folder=folder,
                manifest={"rows": rows[name], **by},
            )
            for name, source in mixture.sources.items()
        }

    def num_clusters(self, rows: int, batch_size: int) -> int:
        """Of a source with that many rows."""
        return math.ceil(rows / (self.rows_per_cluster or batch_size))

    def outlook(self, rows: Mapping[str, int], batch_sizes: Mapping[str, int]) -> str:
        """For `check`, which embeds nothing. Of each source: its rows, and the rows of its batches."""
        sides = {"query": "queries", "positive": "positives", "both": "queries and positives"}[self.embed]
        each = "as many rows as a batch" if self.rows_per_cluster is None else f"{self.rows_per_cluster:,} rows"
        counts = ", ".join(f"{name} {self.num_clusters(rows[name], batch_sizes[name]):,}" for name in rows)
        return f"of {sides}, embedded by {self.model or 'the encoder at the start'}; {each} per cluster, clusters: {counts}"

    def _load(self, encoder: Encoder) -> Encoder:
        model = encoder if self.model is None else load_encoder(self.model).to(encoder.device)
        if model.multi_vector:
            raise ConfigError(
                f"data.neighbourhoods.model={self.model or 'null'}: {type(model.pooling).__name__} gives several vectors per "
                "text, and k-means needs one. Name another model."
            )
        return model

    def _of_source(
        self, name: str, source: Source, model: Encoder, *, count: int, folder: Path, manifest: dict[str, Any]
    ) -> Ints:
        """Found, or read where an earlier start has found the same."""
        settings = {key: getattr(self, key) for key in ("embed", "iterations", "seed", "train_points")}
        manifest = {**manifest, "clusters": count, **settings}
        clusters = on_main(lambda: cluster_files.read_equal(folder, name, manifest))
        if clusters is not None:
            return clusters
        clusters = self._find(name, source, count, model)
        on_main(lambda: cluster_files.write(folder, name, clusters, manifest))
        return clusters

    def _find(self, name: str, source: Source, count: int, model: Encoder) -> Ints:
        """Embeds the rows on all ranks, clusters them on rank 0."""
        if count == 1:
            return np.zeros(len(source), dtype=np.int64)
        trained = len(source) if self.train_points is None else min(len(source), self.train_points)
        if trained < count:
            raise ConfigError(
                f"data.neighbourhoods.train_points={self.train_points}: data.sources.{name} has {count:,} clusters, which cannot "
                "be learned from fewer rows. 40 for each are few, 256 are enough; or raise rows_per_cluster."
            )
        started = time.perf_counter()
        vectors = self._vectors(name, source, model)
        clustering = Clustering(vectors, count, iterations=self.iterations, seed=self.seed, train_points=trained)
        work = clustering.pieces()
        while on_main(lambda: next(work, False)):
            pass  # all hear of each piece: a process group does not wait for the whole of it
        clusters = on_main(lambda: clustering.clusters)
        if distributed.is_main():
            log.info(
                "data.sources.%s: %s rows in %s clusters, found in %.0f s",
                *(name, f"{len(source):,}", f"{clusters.max() + 1:,}", time.perf_counter() - started),
            )
        return clusters

    def _vectors(self, name: str, source: Source, model: Encoder) -> np.ndarray:
        """[R, E] of length 1 on rank 0, nothing on the others."""
        world, found = distributed.world_size(), []
        with tqdm(
            total=len(source), desc=f"embed {name}", unit="row", disable=None if distributed.is_main() else True
        ) as bar:
            for start in range(0, len(source), _ROWS_AT_ONCE * world):
                rows = range(start, min(start + _ROWS_AT_ONCE * world, len(source)))
                blocks = [rows[rank * _ROWS_AT_ONCE : (rank + 1) * _ROWS_AT_ONCE] for rank in range(world)]
                own = self._embedded([source[row] for row in blocks[distributed.rank()]], name, model)
                vectors = distributed.gather_plain(own, [len(block) for block in blocks])
                if not torch.isfinite(vectors).all():
                    raise TrainingError(
                        f"data.neighbourhoods: among rows {rows.start} to {rows.stop - 1} of data.sources.{name} are embeddings "
                        "that are not finite. Use another data.neighbourhoods.model, or training.mixed_precision=no."
                    )
                if distributed.is_main():
                    found.append(vectors.numpy())
                bar.update(len(rows))
        return np.concatenate(found) if found else np.empty((0, 0), dtype=np.float32)

    def _embedded(self, examples: list[TrainingExample], source: str, model: Encoder) -> Tensor:
        """[n, E] of length 1."""

        def side(role: Role, texts: list[str]) -> Tensor:
            # As in training; another model that has no place for an instruction was not trained to be told.
            heeds = self.model is None or PLACEHOLDER in model.tokenizer.prompts.template(role, source)
            told = [example.instruction if heeds else None for example in examples]
            return F.normalize(model.encode(texts, role=role, source=source, instructions=told), dim=-1)

        if self.embed == "query":
            return side("query", [example.query for example in examples])
        positives = side("document", [example.positives[0] for example in examples])
        if self.embed == "positive":
            return positives
        return F.normalize(side("query", [example.query for example in examples]) + positives, dim=-1)
