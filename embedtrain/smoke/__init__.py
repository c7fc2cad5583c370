"""`embedtrain smoke recipe=<name>`: a whole recipe in a minute, every stage of it, with nothing from a model hub.

    models.py   a random model of the recipe's family, 64 wide and two layers deep, with a tokenizer of its kind
    rows.py     real text in the form that each source of the recipe brings: functions of the standard library
    shrink.py   the recipe's config with those in place of its own, and numbers to match

It shows that a recipe fits together, end to end; it says nothing about quality.
"""

from embedtrain.smoke.shrink import shrink

__all__ = ["shrink"]
