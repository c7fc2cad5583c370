"""Configs: put together (`compose`), checked (`validate`), turned into objects (`build`). Imports no torch.

schema.py      the frame: every key that the program itself reads
compose.py     schema + groups + recipe + command line -> one plain, resolved dict
origins.py     where each value came from
explain.py     Hydra's refusals in the user's words
signatures.py  the parameters of a component, read from its source without importing it
validate.py    all problems at once
rules.py       what must hold between keys
build.py       the one place where a `_target_` becomes an object
"""
