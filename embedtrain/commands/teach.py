"""`embedtrain teach`: a teacher's vectors of all texts of a run, on disk."""

from __future__ import annotations

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import compose, join_ranks


def main(arguments: Arguments) -> int:
    name = arguments.required("teacher", "a name under teachers")
    composed, _ = compose(arguments)

    from embedtrain import distributed
    from embedtrain import log as console
    from embedtrain.inference import teach

    join_ranks()
    console.start(main=distributed.is_main())
    filled = teach(composed.config, name)
    if distributed.is_main():
        done = f"{filled.encoded:,} texts encoded" if filled.encoded else "nothing left to encode"
        print(f"{composed.config['teachers'][name].get('store', name)}: {done}, {filled.there:,} were there")
    distributed.shutdown()
    return 0
