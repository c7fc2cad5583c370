"""Spherical k-means (faiss), in pieces; and the numbers of its clusters, by which near ones are found."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints

_ASSIGNED_AT_ONCE = 65536


class Clustering:
    """k-means over vectors of length 1, [R, E] fp32. `clusters` [R] are there when `pieces` has ended.

    The same vectors, seed and version of faiss give the same clusters, with any number of threads.

    count         clusters, at most R
    iterations    at most: it ends when no centroid moves
    seed          of the first centroids, which are rows, and of the rows that train them
    train_points  rows that the centroids are learned from, at least `count`; the others are assigned to what was learned
    """

    def __init__(self, vectors: np.ndarray, count: int, *, iterations: int, seed: int, train_points: int) -> None:
        self.vectors = vectors
        self.count = count
        self.iterations = iterations
        self.seed = seed
        self.train_points = train_points
        self.clusters: Ints = np.zeros(0, dtype=np.int64)

    def pieces(self) -> Iterator[bool]:
        """The work, in steps of bounded length. A GPU is used where faiss was built for one."""
        import faiss

        threads = faiss.omp_get_max_threads()
        if distributed.world_size() > 1:  # launchers leave each rank one thread, and the other ranks wait
            faiss.omp_set_num_threads(os.cpu_count() or 1)
        points = self._points()
        kmeans = faiss.Kmeans(
            points.shape[1],
            self.count,
            niter=1,
            seed=self.seed,
            spherical=True,
            gpu=faiss.get_num_gpus() > 0,
            min_points_per_centroid=1,  # it only warns below it
            max_points_per_centroid=len(points),  # the rows that train were drawn above
        )
        centroids: np.ndarray | None = None
        for _ in tqdm(range(self.iterations), desc="k-means", unit="iteration", disable=None):
            kmeans.train(points, init_centroids=centroids)  # goes on from them as faiss does between two iterations
            moved = np.array(kmeans.centroids)
            if centroids is not None and np.array_equal(centroids, moved):
                break
            centroids = moved
            yield True
        number = np.argsort(walk(np.array(kmeans.centroids)))
        yield True
        found = np.empty(len(self.vectors), dtype=np.int64)
        for start in range(0, found.size, _ASSIGNED_AT_ONCE):
            block = slice(start, start + _ASSIGNED_AT_ONCE)
            found[block] = number[kmeans.assign(self.vectors[block])[1]]
            yield True
        faiss.omp_set_num_threads(threads)
        self.clusters = np.unique(found, return_inverse=True)[1].astype(np.int64)  # without those that no row is in

    def _points(self) -> np.ndarray:
        if self.train_points >= len(self.vectors):
            return self.vectors
        generator = np.random.default_rng(self.seed)
        return self.vectors[np.sort(generator.choice(len(self.vectors), self.train_points, replace=False))]


def walk(centroids: np.ndarray) -> Ints:
    """Clusters [k] in an order in which each is followed by the nearest one not yet visited, by inner product; from 0 on.

    >>> walk(np.array([[1.0, 0.0], [-1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])).tolist()
    [0, 2, 3, 1]
    """
    order = np.zeros(len(centroids), dtype=np.int64)
    waiting = np.ones(len(centroids), dtype=np.bool_)
    for step in range(1, len(centroids)):
        waiting[order[step - 1]] = False
        order[step] = np.where(waiting, centroids @ centroids[order[step - 1]], -np.inf).argmax()
    return order
