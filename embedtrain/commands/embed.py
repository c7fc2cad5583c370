"""`embedtrain embed`: vectors of texts, a text a line."""

from __future__ import annotations

from pathlib import Path

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import dimensions, refuse_rest
from embedtrain.errors import ConfigError


def main(arguments: Arguments) -> int:
    role = arguments.take("role", "query", ("query", "document"))
    model = arguments.required("model", "a model folder, a run directory or a name on the hub")
    dim = dimensions(arguments)
    texts = Path(arguments.required("input", "a file with a text on each line"))
    output = Path(arguments.required("output", "the .npy file to write"))
    context = arguments.take("context", "")
    refuse_rest(arguments, "embed takes model=, input=, output=, role=, dim= and context=")
    if output.suffix != ".npy":
        raise ConfigError(f"output={output}: expected a name that ends in .npy.")
    if not texts.is_file():
        raise ConfigError(f"input={texts}: there is no file {texts.absolute()}.")

    from embedtrain.inference import embed_file

    corpus = Path(context) if context else None
    rows, columns = embed_file(
        model, texts, output, role="query" if role == "query" else "document", dim=dim, context=corpus
    )
    print(f"{output}: {rows:,} vectors of {columns} dimensions, float32")
    return 0
