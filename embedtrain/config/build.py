"""The one place where a `_target_` becomes an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from embedtrain.config.signatures import signature
from embedtrain.errors import EmbedtrainError


def build(node: Mapping[str, Any], **runtime: Any) -> Any:
    """The object that a component of a validated config describes.

    `runtime`: what the program offers besides the config (a pooling is told the hidden size); the component gets those that
    its signature names. It gets plain dicts and lists, never OmegaConf's.
    """
    target = str(node["_target_"])
    takes = signature(target, allow=[target.partition(".")[0]])
    offered = {name: value for name, value in runtime.items() if name in takes.parameters or takes.open}
    try:
        return instantiate(dict(node), _convert_="all", **offered)
    except InstantiationException as error:
        raise _own_words(error) from error.__cause__


def _own_words(error: BaseException) -> BaseException:
    """The error that the component raised, out of Hydra's wrapping, where it is one that speaks to the user."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EmbedtrainError):
            return cause
        cause = cause.__cause__
    return error
