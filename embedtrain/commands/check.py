"""`embedtrain check`: the resolved config with where each part is from, and the plan."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import compose
from embedtrain.errors import ConfigError


def main(arguments: Arguments) -> int:
    from embedtrain.outlay import read_hardware, read_launch

    output = arguments.take("output", "text", ("text", "json"))
    named = arguments.take("launch", "")
    launch = read_launch(named) if named else None
    world = arguments.take("world", str(launch.world) if launch else os.environ.get("WORLD_SIZE", "1"))
    if not world.isdecimal() or int(world) < 1:
        raise ConfigError(f"world={world}: expected the number of devices, at least 1.")
    row = arguments.take("hardware", "")
    hardware = read_hardware(row) if row else None
    composed, warnings = compose(arguments, world=int(world))
    if launch and composed.config["training"]["mixed_precision"] is None:
        composed.config["training"]["mixed_precision"] = launch.mixed_precision

    from embedtrain.config.origins import tree
    from embedtrain.config.stages import stage_configs
    from embedtrain.planning import make_plan

    plans = {
        name: make_plan(settings, world=int(world), hardware=hardware, sharded=launch is not None and launch.sharded)
        for name, settings in stage_configs(composed.config).items()
    }
    if output == "json":
        known = {name: plan.as_dict() for name, plan in plans.items()}
        one_or_many = {"plan": known[""]} if "" in known else {"plans": known}
        print(json.dumps({**asdict(composed), "warnings": warnings, **one_or_many}, indent=2))
        return 0
    print("\n".join(tree(composed.config, composed.origins)))
    for name, plan in plans.items():
        print("\n".join(["", *([f"stage              {name}"] if name else []), *plan.lines()]))
    for warning in warnings:
        print(f"warning: {warning}")
    return 0
