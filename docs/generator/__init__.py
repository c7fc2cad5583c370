"""Writes docs/losses.md and docs/pooling.md from the options in configs/ and the docstrings of their classes, and the table of
recipes: `make docs`.

docstring.py   a class docstring, taken apart
options.py     one YAML of configs/, with the class behind it and what builds on it
order.py       the reading order: families of options, in a few words each
markdown.py    plain text as Markdown: links to papers, classes and files
entries.py     one option, or one part of InfoNCE, as a section of a page
recipes.py     the table of recipes
pages.py       the pages
"""
