"""`embedtrain evaluate`: measure a model."""

from __future__ import annotations

import json

from embedtrain.commands.arguments import Arguments
from embedtrain.commands.common import dimensions, join_ranks


def main(arguments: Arguments) -> int:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate_evaluation

    output = arguments.take("output", "text", ("text", "json"))
    model = arguments.required("model", "a model folder, a run directory or a name on the hub")
    dim = dimensions(arguments)
    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir, from_run=arguments.from_run)
    validate_evaluation(composed.config, composed.problems)

    from embedtrain import distributed
    from embedtrain.evaluation.comparison import percent, result_size
    from embedtrain.inference import evaluate_model

    join_ranks()
    results = evaluate_model(model, composed.config, dim=dim)
    if distributed.is_main():
        if output == "json":
            print(json.dumps({name: result.metrics for name, result in results.items()}, indent=2))
        for name, result in results.items() if output == "text" else ():
            print(f"{name}{result_size(result)}")
            print(*(f"  {metric:<12} {percent(value):>6}" for metric, value in result.metrics.items()), sep="\n")
    distributed.shutdown()
    return 0
