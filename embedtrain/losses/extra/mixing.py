"""Hard negatives mixed in embedding space: no text and no forward pass behind them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, softmax

from embedtrain.errors import ConfigError
from embedtrain.losses.extra import with_documents
from embedtrain.types import EmbeddingBatch


class HardNegativeMixing:
    """Adds mixtures of a query's hard negatives to its hard negatives: no text and no forward pass behind them.

        pair   h = norm( l n_j + (1 - l) n_k ),   l ~ Beta(2, 2), n_j and n_k two hard negatives, drawn
        list   h = norm( sum over m of l_m n_m ), l = softmax( s(q, n_m) / temperature ) without gradient

    KaLM-Embedding V2 (arXiv:2506.20923) calls the weights of the list "similarity-based" and gives no temperature; it is
    an assumption here. Gradients reach the hard negatives that were mixed. Draws are the same on all ranks. A query with
    fewer than two hard negatives gets none.
    Cost: that of InfoNCE with `pairs + lists` more documents per query; nothing is encoded again.

    pairs         mixed pairs per query
    lists         1 adds the list's mixture, 0 does not
    temperature   of the list's weights
    """

    def __init__(self, *, pairs: int = 1, lists: int = 1, temperature: float = 0.05):
        if pairs < 0 or lists not in (0, 1) or pairs + lists == 0:
            raise ConfigError(
                f"loss.extra.mixing: expected pairs >= 0, lists 0 or 1, and not both 0; got {pairs} and {lists}."
            )
        if temperature <= 0:
            raise ConfigError(f"loss.extra.mixing.temperature: expected a number above 0, got {temperature}.")
        self.pairs = pairs
        self.lists = lists
        self.temperature = temperature

    def __call__(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        owner = batch.relation.owner.cpu()
        hard = torch.nonzero(~batch.relation.is_positive.cpu() & (owner >= 0)).flatten()
        hard = hard[torch.argsort(owner[hard], stable=True)]
        counts = torch.bincount(owner[hard], minlength=batch.relation.num_queries)
        start = counts.cumsum(0) - counts
        queries = torch.nonzero(counts >= 2).flatten()
        if queries.numel() == 0:
            return batch
        mixed: list[Tensor] = []
        owners: list[Tensor] = []
        for _ in range(self.pairs):
            mixed.append(self._pairs(batch, hard, start[queries], counts[queries], generator=self._draws(batch, mixed)))
            owners.append(queries)
        if self.lists:
            mixed.append(self._list(batch, hard, queries, counts))
            owners.append(queries)
        owner = torch.cat(owners).to(batch.relation.owner.device)
        # No text has a negative id (`text_id` has 63 bits), so a mixture is nobody's known answer.
        ids = -2 - torch.arange(owner.numel(), device=owner.device)
        return with_documents(batch, torch.cat(mixed), ids, owner)

    @staticmethod
    def _draws(batch: EmbeddingBatch, done: list[Tensor]) -> torch.Generator:
        return torch.Generator().manual_seed(batch.seed + len(done))

    def _pairs(
        self, batch: EmbeddingBatch, hard: Tensor, start: Tensor, counts: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        n = len(start)
        first = (torch.rand(n, generator=generator) * counts).long()
        second = (torch.rand(n, generator=generator) * (counts - 1)).long()
        second += second >= first  # any other of them
        share = torch.rand(n, 3, generator=generator).median(dim=1).values  # the middle of three uniforms is Beta(2, 2)
        values = batch.documents.values
        share = share.to(values)[:, None]
        a, b = (values[hard[start + chosen].to(values.device)] for chosen in (first, second))
        return self._norm(share * a + (1 - share) * b, batch)

    def _list(self, batch: EmbeddingBatch, hard: Tensor, queries: Tensor, counts: Tensor) -> Tensor:
        q, d = batch.queries.values, batch.documents.values
        own = hard[torch.isin(batch.relation.owner.cpu()[hard], queries)].to(d.device)
        asking = batch.relation.owner[own]
        row = torch.repeat_interleave(torch.arange(len(queries)), counts[queries]).to(d.device)
        with torch.no_grad():
            logits = (q[asking] * d[own]).sum(1) / self.temperature
            padded = logits.new_full((len(queries), int(counts.max())), -torch.inf)
            first = (counts[queries].cumsum(0) - counts[queries]).to(d.device)
            place = torch.arange(len(row), device=d.device) - first[row]
            padded[row, place] = logits
            weight = softmax(padded, dim=1)[row, place]
        total = torch.zeros(len(queries), d.shape[1], dtype=d.dtype, device=d.device)
        return self._norm(total.index_add(0, row, weight[:, None] * d[own]), batch)

    @staticmethod
    def _norm(values: Tensor, batch: EmbeddingBatch) -> Tensor:
        return normalize(values, dim=1) if batch.documents.normalized else values
