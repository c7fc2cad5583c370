"""Encoder: texts or tokens -> embeddings. A backbone, a pooling head, an optional projection, and the norm; and views."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from embedtrain.data.chunking import chunks
from embedtrain.data.context import choose, undivided
from embedtrain.data.late_chunking import encode_chunks
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError
from embedtrain.pooling.learned_tokens import LearnedTokensPooling
from embedtrain.types import Embeddings, RaggedTokens, Role

log = logging.getLogger("embedtrain")

# Texts tokenised and sorted together by `encode`: enough to sort well, few enough to hold the tokens of.
_TEXTS_AT_ONCE = 16384


class Encoder(nn.Module):
    """One embedding per text: `normalize(projection(pooling(backbone(tokens))))`, and the same text in further views.

    backbone, pooling: see `embedtrain.types.Backbone` and `Pooling`; what a head may ask for, in `embedtrain.pooling`.
    tokenizer: turns texts into the tokens of a role; the same one in training, evaluation and export.
    normalize: puts every vector on the unit sphere, in fp32; not those of a head whose vectors are used `as_is`.
    encode_dtype: numbers of the backbone's arithmetic in `encode`; None is full precision. A training run sets its own here.
    projection_dim: a linear layer with bias to this dimension, as `sentence-transformers` exports a Dense; None for none.
    views: further heads on the same hidden states, by the name of the view that each makes. They are not projected.
    layers: hidden layers that get a view `layer_<n>` each; set by `read_layers`.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pooling: nn.Module,
        tokenizer: TextTokenizer,
        normalize: bool = True,
        projection_dim: int | None = None,
        views: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.tokenizer = tokenizer
        self.unit_length = normalize  # of heads whose vectors are not used as they are
        self.encode_dtype: torch.dtype | None = None
        pooled_dim = _output_dim(pooling, backbone)
        if projection_dim is not None and _as_is(pooling):
            raise ConfigError(
                f"encoder.projection_dim={projection_dim}: the vectors of {type(pooling).__name__} are used as they are, since "
                "each of their dimensions has a meaning. Set it to null."
            )
        self.projection = None if projection_dim is None else nn.Linear(pooled_dim, projection_dim)
        self.embedding_dim = projection_dim or pooled_dim
        reserved = [name for name in views or {} if name == "embedding" or name.startswith("layer_") or "." in name]
        if reserved:
            raise ConfigError(
                f"encoder.views.{reserved[0]}: `embedding` is the embedding itself, `layer_<n>` that of a hidden layer, and a "
                "name has no dot. Choose another name."
            )
        if any(isinstance(head, LearnedTokensPooling) for head in (views or {}).values()):
            raise ConfigError(
                "encoder.views: learned tokens stand behind every text, where other heads would read them too. Use them as the "
                "pooling: pooling=learned_tokens."
            )
        self.views = nn.ModuleDict(views or {})
        self.layers: tuple[int, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def normalize(self) -> bool:
        """Whether the embedding itself has length 1."""
        return self.unit_length and not _as_is(self.pooling)

    @property
    def multi_vector(self) -> bool:
        """Whether a text has several vectors, and is compared by MaxSim."""
        return getattr(self.pooling, "multi_vector", False)

    @property
    def numbers_per_document(self) -> int:
        """Numbers of the longest document's embedding."""
        return self.embedding_dim * (self.tokenizer.max_length["document"] if self.multi_vector else 1)

    @property
    def num_context(self) -> int:
        """Documents whose vectors are read in front of each text (`backbones/contextual.py`); 0 for every other backbone."""
        return getattr(self.backbone, "num_context", 0)

    @property
    def tokens_in_front(self) -> int:
        """What is read in front of the tokens of each text."""
        return getattr(self.backbone, "tokens_in_front", 0)

    @property
    def view_names(self) -> tuple[str, ...]:
        """Every view that `forward` makes."""
        return (*self.views, *(f"layer_{layer}" for layer in self.layers))

    def read_layers(self, layers: Sequence[int]) -> None:
        """Make a view `layer_<n>` of each: the embedding, were the model cut after layer n.

        Layer 1 is the first transformer layer; the last layer is the embedding itself. Raises ConfigError for a layer
        that the backbone does not have, and for a pooling that reads several layers.
        """
        depth: int = self.backbone.config.num_hidden_layers  # type: ignore[assignment,union-attr]
        for layer in layers:
            if not 1 <= layer <= depth:
                raise ConfigError(
                    f"loss: it reads layer {layer}, but {self.backbone.name} has the layers 1 to {depth}. Name others."
                )
            if layer < depth and getattr(self.pooling, "needs_layers", False):
                raise ConfigError(
                    f"loss: it reads layer {layer} by itself, but {type(self.pooling).__name__} reads several layers at once. "
                    "Use a pooling of the last layer, such as mean."
                )
        self.layers = tuple(sorted(set(layers)))

    def encode_context(self, tokens: RaggedTokens) -> Embeddings:
        """Vectors of context documents [N, H], for `forward`; with gradient where gradients are on."""
        return Embeddings(self.backbone.encode_context(tokens.to(self.device)), normalized=False)  # type: ignore[operator]

    @torch.no_grad()
    def set_context(
        self, documents: Sequence[str] | None, *, source: str | None = None, chunk_tokens: int | None = None
    ) -> None:
        """From now on texts are read behind `num_context` of these documents, the same for the same list; None: behind none.

        Of the corpus that is searched, with the prompts of `source`. Where there are too few, they come again in turn. An encoder
        that reads no context is left as it is.
        """
        backbone: Any = self.backbone
        if not self.num_context:
            return
        if not documents:
            backbone.context = None
            return
        half = self.encode_dtype
        chosen, places = choose(len(documents), self.num_context, seed=0).unique(return_inverse=True)
        with evaluating(self), nullcontext() if half is None else torch.autocast(self.device.type, dtype=half):
            tokens, _ = self.tokenizer.encode([documents[i] for i in chosen.tolist()], role="document", source=source)
            tokens = undivided(tokens)
            parts = list(chunks(tokens.lengths, self._chunk_tokens(chunk_tokens)))
            found = torch.cat([self.encode_context(tokens.select(index)).values for index in parts])
        backbone.context = found[torch.argsort(torch.cat(parts))[places].to(found.device)]

    def forward(self, tokens: RaggedTokens, *, views: bool = True, context: Tensor | None = None) -> Embeddings:
        """Embeddings [N, E] in fp32, with gradient where gradients are on. The caller decides about autocast.

        views: make the views too; without them the embedding alone, which may be much cheaper.
        context: vectors of `encode_context` [num_context, H] that are read in front of each text; None: those of `set_context`.
        """
        tokens = tokens.to(self.device)
        heads = [self.pooling, *(self.views.values() if views else ())]
        layers = self.layers if views else ()
        wanted = {
            "all_layers": bool(layers) or any(getattr(head, "needs_layers", False) for head in heads),
            "routing": any(getattr(head, "needs_router", False) for head in heads),
        }
        options: dict[str, Any] = {name: True for name, is_wanted in wanted.items() if is_wanted}
        if isinstance(self.pooling, LearnedTokensPooling):
            model: Any = self.backbone.hf_model
            options["inputs"] = self.pooling.inputs(tokens.ids, model.get_input_embeddings())
        if context is not None:
            options["context"] = context
        found = self.backbone(tokens, **options)
        hidden = list(found) if any(wanted.values()) else [found]
        routing = hidden.pop() if wanted["routing"] else None
        embedding = self._embed(self.pooling, hidden, tokens, self.projection, routing)
        made = {name: self._embed(head, hidden, tokens, None, routing) for name, head in self.views.items() if views}
        for layer in layers:
            if layer == len(hidden) - 1:
                made[f"layer_{layer}"] = embedding
            else:
                states = self.backbone.finish(hidden[layer])  # type: ignore[operator]
                made[f"layer_{layer}"] = self._embed(self.pooling, [states], tokens, self.projection)
        return replace(embedding, views=made)

    def _embed(
        self,
        head: nn.Module,
        hidden: Sequence[Tensor],
        tokens: RaggedTokens,
        projection: nn.Module | None = None,
        routing: Tensor | None = None,
    ) -> Embeddings:
        """What one head makes of the states, projected and on the unit sphere. `hidden`: of the last layer, or of all."""
        read: Any = hidden if getattr(head, "needs_layers", False) else hidden[-1]
        pooled = head((read, routing) if getattr(head, "needs_router", False) else read, tokens)
        offsets = pooled.offsets if isinstance(pooled, Embeddings) else None
        if tokens.span_offsets is not None:
            _refuse_chunks(head)
        values = (pooled.values if isinstance(pooled, Embeddings) else pooled).float()
        normalize = self.unit_length and not _as_is(head)
        with torch.autocast(self.device.type, enabled=False):
            if projection is not None:
                values = projection(values)
            if normalize:
                values = F.normalize(values, dim=-1)  # a zero vector stays zero
        return Embeddings(values, normalize, offsets)

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role = "query",
        source: str | None = None,
        instructions: Sequence[str | None] | None = None,
        chunk_tokens: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Vectors [N, E] of `texts` for search by inner product, in their order, fp32 on the CPU.

        They are the embeddings, except where a head makes vectors for search of them (`search_vectors`).

        role, source, instructions: choose the prompt, as in training; `instructions` has one entry for each text.
        chunk_tokens: tokens in one forward pass; changes memory, never the result. None: 2,048 on a CPU, so that what a layer
            makes stays in its caches, and 16,384 elsewhere.

        Raises ConfigError where a text has several vectors: see `encode_embeddings`.
        """
        search_vectors = getattr(self.pooling, "search_vectors", None)
        result = torch.empty(len(texts), getattr(self.pooling, "search_dim", self.embedding_dim))
        if self.multi_vector:
            raise ConfigError(
                f"pooling: {type(self.pooling).__name__} gives several vectors per text, where one is wanted. "
                "Use encode_embeddings, or a pooling that gives one."
            )
        for index, embeddings in self._encoded(
            texts, role, source, instructions, chunk_tokens=chunk_tokens, show_progress=show_progress, views=False
        ):
            values = embeddings.values
            result[index] = values if search_vectors is None else search_vectors(values, role)
        return result

    def encode_embeddings(
        self,
        texts: Sequence[str],
        *,
        role: Role = "query",
        source: str | None = None,
        instructions: Sequence[str | None] | None = None,
        chunk_tokens: int | None = None,
        show_progress: bool = False,
        views: bool = False,
    ) -> Embeddings:
        """`texts` in their order, one vector each or several, and the views where they are asked for. Others as `encode`."""
        if not len(texts):
            return self._nothing(views)
        order, parts = [], []
        for index, embeddings in self._encoded(
            texts, role, source, instructions, chunk_tokens=chunk_tokens, show_progress=show_progress, views=views
        ):
            order.append(index)
            parts.append(embeddings)
        return Embeddings.cat(parts).select(torch.argsort(torch.cat(order)))

    @torch.no_grad()
    def encode_chunks(
        self,
        documents: Sequence[Sequence[str]],
        *,
        source: str | None = None,
        chunk_tokens: int | None = None,
    ) -> Embeddings:
        """Late chunking: each document is read as a whole, and each of its chunks is embedded as a text of its own.

        Document by document, chunk by chunk, on the CPU: one vector for each, or one for each token of the chunk. Raises
        ConfigError for a pooling that cannot, DataError for a chunk beyond the maximum length.
        """
        if not len(documents):
            return self._nothing(views=False)
        half = self.encode_dtype
        parts, order = [], []
        with evaluating(self), nullcontext() if half is None else torch.autocast(self.device.type, dtype=half):
            tokens = encode_chunks(self.tokenizer, documents, source=source)
            for index in chunks(tokens.lengths + self.tokens_in_front, self._chunk_tokens(chunk_tokens)):
                parts.append(self(tokens.select(index), views=False).map(Tensor.cpu))
                order.append(tokens.spans_of(index))
        return Embeddings.cat(parts).select(torch.argsort(torch.cat(order)))

    @torch.no_grad()
    def _encoded(
        self,
        texts: Sequence[str],
        role: Role,
        source: str | None,
        instructions: Sequence[str | None] | None,
        *,
        chunk_tokens: int | None,
        show_progress: bool,
        views: bool,
    ) -> Iterator[tuple[Tensor, Embeddings]]:
        """Chunk by chunk: which of the texts [n], and their embeddings on the CPU."""
        self._say_without_context()
        half = self.encode_dtype
        with (
            evaluating(self),
            nullcontext() if half is None else torch.autocast(self.device.type, dtype=half),
            tqdm(total=len(texts), desc="encode", unit="text", disable=None if show_progress else True) as progress,
        ):
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                block = slice(start, start + _TEXTS_AT_ONCE)
                tokens, _ = self.tokenizer.encode(
                    texts[block],
                    role=role,
                    source=source,
                    instructions=None if instructions is None else instructions[block],
                )
                for index in chunks(tokens.lengths + self.tokens_in_front, self._chunk_tokens(chunk_tokens)):
                    yield start + index, self(tokens.select(index), views=views).map(Tensor.cpu)
                    progress.update(index.numel())

    def _say_without_context(self) -> None:
        if self.num_context and self.backbone.context is None:
            log.warning(
                "No context was set: texts are read behind %d times the learned null vector. Documents of the corpus are better: "
                "encoder.set_context(documents).",
                self.num_context,
            )

    def _chunk_tokens(self, asked: int | None) -> int:
        return asked if asked is not None else 2048 if self.device.type == "cpu" else 16384

    def _nothing(self, views: bool) -> Embeddings:
        """The embeddings of no texts, in the form that those of some would have."""

        def empty(head: nn.Module, dim: int) -> Embeddings:
            many = getattr(head, "multi_vector", False)
            normalized = self.unit_length and not _as_is(head)
            return Embeddings(torch.empty(0, dim), normalized, torch.zeros(1, dtype=torch.int64) if many else None)

        made = {name: empty(head, _output_dim(head, self.backbone)) for name, head in self.views.items()}
        main = empty(self.pooling, self.embedding_dim)
        made |= {f"layer_{layer}": main for layer in self.layers}
        return replace(main, views=made if views else {})

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _refuse_chunks(head: nn.Module) -> None:
    if not getattr(head, "reads_spans", False):
        raise ConfigError(
            f"pooling: {type(head).__name__} cannot embed the chunks of a document that is read as a whole (late chunking). "
            "Use mean, max or multi_vector."
        )


def _as_is(head: nn.Module) -> bool:
    """Whether the head's vectors are never projected and never scaled: each dimension has a meaning."""
    return getattr(head, "as_is", False)


def _output_dim(head: nn.Module, backbone: nn.Module) -> int:
    return int(getattr(head, "output_dim", backbone.hidden_size))  # type: ignore[arg-type]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the mode of before outside."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
