"""Reading a transformers model by name, and saying what a folder lacks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils.logging import set_tqdm_hook

from embedtrain import distributed
from embedtrain.backbones.own_models import OWN_MODELS
from embedtrain.backbones.prompt_end import without_prompt_end
from embedtrain.backbones.published import Body, published_body
from embedtrain.backbones.published.adapter import read_adapter
from embedtrain.backbones.published.body import keys_of
from embedtrain.errors import CheckpointError, MissingModelError

log = logging.getLogger(__name__)

Weights = Literal["pretrained", "random"]


def load_config(name: str, hub: Mapping[str, Any]) -> Any:
    """The configuration of a folder or hub name. `hub`: revision and trust_remote_code.

    An adapter's is that of its base model; a published model's whose code is its own, that of the same in transformers.
    """
    adapter = read_adapter(name, hub)
    if adapter is not None:
        return load_config(adapter.base, {**hub, "revision": adapter.base_revision})
    try:
        body = published_body(name, hub)
        config = AutoConfig.from_pretrained(name, **hub) if body is None else body.config
    except (OSError, ValueError) as error:
        why = f"there is no folder {Path(name).absolute()}" if _is_path(name) and not Path(name).exists() else error
        raise MissingModelError(
            f"backbone.name: {name!r} is no model folder and no model that can be fetched: {why}"
        ) from error
    own = getattr(config, "auto_map", None)
    if own and not hub["trust_remote_code"] and config.model_type not in OWN_MODELS:
        log.warning(
            "backbone.name: %s names code of its own (%s), which is not run. It is read as transformers' %s: is that the same?",
            *(name, ", ".join(sorted(map(str, own.values()))), config.model_type),
        )
    return config


def load_tokenizer(name: str, hub: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that came with a model; with an adapter that brought none, its base model's."""
    adapter = read_adapter(name, hub)
    if adapter is not None and not adapter.has("tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(adapter.base, **{**hub, "revision": adapter.base_revision})
    with quiet_transformers():  # which wonders at the type of a published model
        return without_prompt_end(AutoTokenizer.from_pretrained(name, **hub))


def load_model(name: str, config: Any, weights: Weights, dtype: torch.dtype, hub: Mapping[str, Any]) -> PreTrainedModel:
    """The model without a pooler; with random weights none are read, so the meta device will do.

    Raises CheckpointError where weights of a published layout are missing or of another model.
    """
    # A pooler that nobody reads would train on nothing, and data-parallel wrappers wait for its gradient.
    options = {"add_pooling_layer": False} if _has_pooler(config) else {}
    if weights == "random":
        return AutoModel.from_config(config, dtype=dtype, trust_remote_code=hub["trust_remote_code"], **options)
    adapter = read_adapter(name, hub)
    if adapter is not None:
        model = load_model(adapter.base, config, weights, dtype, {**hub, "revision": adapter.base_revision})
        adapter.add_to(model)
        return model
    body = published_body(name, hub)
    if body is not None:
        return _load_published(name, body, config, dtype, {**hub, **options})
    with quiet_transformers():
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **hub, **options
        )
    if report["missing_keys"] and getattr(config, "auto_map", None) and not hub["trust_remote_code"]:
        raise CheckpointError(
            f"backbone.name: {name} is another model than transformers' {config.model_type}: its own code was not run, and its "
            f"folder lacks weights of that model. {keys_of(missing=sorted(report['missing_keys']))} If you trust the code, set "
            "backbone.trust_remote_code=true."
        )
    if report["missing_keys"]:
        log.warning(
            "backbone.name: %s lacks these weights, they start random: %s", name, sorted(report["missing_keys"])
        )
    return model


def _load_published(
    name: str, body: Body, config: Any, dtype: torch.dtype, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Every weight by its published key, and no other."""
    # Keys and shapes that do not fit are told by `check`, all at once.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet_transformers():
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=dtype, key_mapping=dict(body.renamed), **told, **options
        )
    body.check(name, report)
    return model


def _is_path(name: str) -> bool:
    """A name on the hub is `model` or `owner/model`."""
    return name.startswith(("/", ".")) or name.count("/") > 1


def set_dropout(config: Any, probability: float) -> None:
    """Every dropout probability of a configuration; a classifier's, which no embedding passes, stays."""
    for key, value in config.to_dict().items():
        is_dropout = "dropout" in key or key.endswith("pdrop")
        if is_dropout and "classifier" not in key and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, probability)


def _has_pooler(config: Any) -> bool:
    model_class = MODEL_MAPPING.get(type(config), None)
    return isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Progress bars on one terminal only, and no remarks. transformers' own report calls a pooler that was left out
    "unexpected", and in a group of ranks it tells that no layer is tensor-parallel; what matters is what the folder lacks.
    """
    reports = logging.getLogger("transformers")
    level, bars = reports.level, set_tqdm_hook(_passing_bar)
    reports.setLevel(logging.ERROR)
    try:
        yield
    finally:
        reports.setLevel(level)
        set_tqdm_hook(bars)


def _passing_bar(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Gone when it is done, and never in a log file (`disable=None`)."""
    return make(*args, **{**options, "leave": False, "disable": None if distributed.is_main() else True})
