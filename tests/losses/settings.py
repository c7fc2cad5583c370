"""InfoNCE from settings as the oracle takes them."""

from __future__ import annotations

from typing import Any

from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.modifiers import Modifier
from embedtrain.losses.modifiers.guide import GuideFilter
from embedtrain.losses.modifiers.hardest import HardestOnly
from embedtrain.losses.modifiers.hardness import HardnessWeight
from embedtrain.losses.modifiers.margin import FalseNegativeFilter
from embedtrain.losses.modifiers.multi_similarity import MultiSimilarityMining
from embedtrain.losses.modifiers.same_class import SameClassFilter
from embedtrain.losses.modifiers.scope import HardNegativeScope


def infonce(**settings: Any) -> InfoNCE:
    """`hardness`, `false_negatives`, `guide`, `same_class`, `scope`, `hardest`, `near` (epsilon) become modifiers."""
    modifiers: dict[str, Modifier] = {}
    if (hardness := settings.pop("hardness", None)) is not None:
        modifiers["hardness"] = HardnessWeight(**hardness)
    if (margin := settings.pop("false_negatives", None)) is not None:
        modifiers["false_negatives"] = FalseNegativeFilter(**margin)
    if (guide := settings.pop("guide", None)) is not None:
        modifiers["guide"] = GuideFilter(**({"absolute": None} | guide))
    if settings.pop("same_class", False):
        modifiers["same_class"] = SameClassFilter()
    if (scope := settings.pop("scope", None)) is not None:
        modifiers["scope"] = HardNegativeScope(of=scope)
    if (hardest := settings.pop("hardest", None)) is not None:
        modifiers["hardest"] = HardestOnly(k=hardest)
    if (epsilon := settings.pop("near", None)) is not None:
        modifiers["multi_similarity"] = MultiSimilarityMining(epsilon=epsilon)
    return InfoNCE(modifiers=modifiers, **settings)
