"""`embedtrain mine`: rows with hard negatives, and an audit."""

from __future__ import annotations

from pathlib import Path

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import join_ranks

# What `format=` may be: the names of data/writers.
FORMATS = ("canonical", "flag_embedding", "triplet", "n_tuple", "labeled_list", "tevatron", "beir")


def main(arguments: Arguments) -> int:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate_mining

    form = arguments.take("format", "canonical", FORMATS)
    model = arguments.take("model", "")
    output = Path(arguments.required("output", "the folder to write"))
    folders = {"config_dir": arguments.config_dir, "from_run": arguments.from_run}
    composed = compose_config(arguments.overrides, **folders)
    if "_target_" not in composed.config["miner"]:  # none was chosen, at most settings of it
        composed = compose_config([*arguments.overrides, "miner=percent_of_positive"], **folders)
    if model:
        composed.config["miner"]["model"] = model
    validate_mining(composed.config, composed.problems)

    from embedtrain import distributed
    from embedtrain import log as console
    from embedtrain.mining.command import run_mining

    join_ranks()
    console.start(main=distributed.is_main())
    for line in run_mining(composed.config, output=output, form=form):
        print(line)
    distributed.shutdown()
    return 0
