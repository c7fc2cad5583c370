"""The command line: one grammar, `embedtrain <command> recipe=<name> key=value ...`.

Whatever is wrong with the arguments or the config is said before torch is imported.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embedtrain.errors import ConfigError, EmbedtrainError

if TYPE_CHECKING:
    from embedtrain.config.compose import Composed
    from embedtrain.run import Run

log = logging.getLogger("embedtrain")

USAGE = """\
usage: embedtrain <command> [recipe=<name>] [key=value ...] [--config-dir DIR] [--from-run DIR]

commands
  train      train, prove, export and report; `accelerate launch train.py ...` is the same on many devices
  check      the resolved config with where each part is from, and the plan; also: world=8 or launch=ddp_8gpu, for memory
             and operations per device; hardware=h100 for hours and money (rows: launch/hardware.yaml); output=json
  recipes    what recipe=<name> can be: paper, published result, what was run here; also: output=json
  smoke      recipe=<name>: all its stages in a minute, on a small random model of its family and small texts; also: output=
  evaluate   measure a model: model=<folder, run directory or hub name> and the evaluators; also: dim=256 output=json
  export     run=<directory>: the newest checkpoint of a run as a verified model folder; also: folder=<where to>
  report     run=<directory>: write its report.html again
  embed      model=<...> input=texts.txt (a text a line) output=vectors.npy role=query|document; also: dim=256,
             context=corpus.txt (documents, for a model that reads some in front of each text)
  mine       output=<folder> and sources with a miner: rows with hard negatives, and an audit; also: model=<...> format=<...>
  merge      method=<name> models=[a,b] output=<folder>: several runs, checkpoints or models as one, compared with each; also:
             base=<model>, the method's parameters (weight=[1,2] t= density= lambda=), config=<a file of mergekit>, dtype=
  teach      teacher=<name under teachers> and the run's recipe and settings: its vectors of all texts of the run, on disk

settings
  recipe=quickstart              a whole run from recipes/; or a file: recipe=path/to/mine.yaml
  loss=infonce                   another option of a group: a file in configs/<group>/
  optim.learning_rate=1e-5       a value; a list is [a,b], text with a comma needs quotes within quotes
  ~trackers.wandb                take a part out
  run.name=mine run.seed=1       see `embedtrain check` for every key

flags
  --config-dir DIR   a folder with options of your own: DIR/recipe/mine.yaml, DIR/loss/mine.yaml (or set EMBEDTRAIN_CONFIG_PATH)
  --from-run DIR     the saved config of a run in place of a recipe, in a new run directory
  --version, --help

examples
  embedtrain check recipe=quickstart
  embedtrain evaluate model=runs/quickstart recipe=quickstart
  embedtrain merge method=slerp models=[runs/a,runs/b] output=merged
  embedtrain mine data=pairs data.path=pairs.jsonl model=BAAI/bge-small-en-v1.5 output=mined
  embedtrain train recipe=finetune data.path=pairs.jsonl backbone.name=BAAI/bge-small-en-v1.5
  accelerate launch --config_file launch/ddp_8gpu.yaml train.py recipe=quickstart
"""

_REFUSED = {
    "-m": "a sweep inside a launch would run every trial in every rank, sharing one process group. Start one command per trial.",
    "--local_rank": "ranks come from the launcher's environment. Start with `accelerate launch train.py ...` or `torchrun`.",
    "--cfg": "`embedtrain check recipe=...` prints the config and where each part is from.",
    "--config-name": "a run is chosen with recipe=<name>; a recipe of your own: recipe=path/to/mine.yaml or --config-dir DIR.",
}
_REFUSED |= {
    "--multirun": _REFUSED["-m"],
    "--local-rank": _REFUSED["--local_rank"],
    "-c": _REFUSED["--cfg"],
    "--info": _REFUSED["--cfg"],
    "--resolve": _REFUSED["--cfg"],
    "-cn": _REFUSED["--config-name"],
    "--config-path": _REFUSED["--config-name"],
    "-cp": _REFUSED["--config-name"],
}


@dataclass
class Arguments:
    """A command line, taken apart."""

    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    from_run: str | None = None
    help: bool = False

    def take(self, key: str, default: str, choices: Sequence[str] | None = None) -> str:
        """The value of `key=value`, which belongs to the command and not to the config."""
        for text in list(self.overrides):
            name, _, value = text.partition("=")
            if name == key:
                self.overrides.remove(text)
                default = value
        if choices is not None and default not in choices:
            raise ConfigError(f"{key}={default}: expected one of {', '.join(choices)}.")
        return default

    def required(self, key: str, what: str) -> str:
        """The value of a `key=value` that the command cannot do without."""
        value = self.take(key, "")
        if not value:
            raise ConfigError(f"{key}: required, and not set. Expected {key}=<{what}>.")
        return value


def parse(argv: Sequence[str]) -> Arguments:
    """Raises ConfigError for a flag that there is not."""
    found = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            found.help = True
        elif flag in ("--config-dir", "--from-run"):
            if not equals and not words:
                raise ConfigError(f"{flag}: expected a folder after it.")
            setattr(found, flag[2:].replace("-", "_"), value if equals else words.pop(0))
        elif flag in _REFUSED:
            raise ConfigError(f"{flag}: {_REFUSED[flag]}")
        elif word.startswith("-"):
            from embedtrain.config.explain import bad_syntax

            raise ConfigError(bad_syntax(word))
        else:
            found.overrides.append(word)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `embedtrain`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from embedtrain import __version__

        print(__version__)
        return 0
    return _run(words[0], words[1:])


def train(argv: Sequence[str] | None = None) -> int:
    """`train.py`: the command `train`."""
    return _run("train", list(sys.argv[1:] if argv is None else argv))


def _run(command: str, words: list[str]) -> int:
    """The exit code: 2 for a config that cannot run, 1 for what failed on the way, 143 after SIGTERM and 130 after Ctrl-C
    (training has then saved)."""
    try:
        if command not in COMMANDS:
            raise ConfigError(_no_such_command(command))
        arguments = parse(words)
        if arguments.help:
            print(USAGE, end="")
            return 0
        return COMMANDS[command](arguments)
    except ConfigError as error:
        _say(error, all_ranks=False)
        return 2
    except EmbedtrainError as error:
        _say(error, all_ranks=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `embedtrain check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _no_such_command(command: str) -> str:
    from embedtrain.config.explain import did_you_mean

    if "=" in command or command.startswith("-"):
        return f"{command}: a command comes first, e.g. `embedtrain train {command}`. There are: {', '.join(COMMANDS)}."
    return f"{command}: there is no such command.{did_you_mean(command, COMMANDS)} There are: {', '.join(COMMANDS)}."


def _say(error: Exception, *, all_ranks: bool) -> None:
    """The message, without a traceback. A config is the same for all ranks of a machine: one of them speaks."""
    sys.stdout.flush()
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if all_ranks or local == 0:
        who = f"[rank {rank}] " if rank else ""
        print(f"{who}error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(5)  # the launcher ends all ranks when one ends: let the one that speaks be the first


# ------------------------------------------------------------------------------------------------------- commands


def _compose(arguments: Arguments, *, world: int | None = None) -> tuple[Composed, list[str]]:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate

    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir, from_run=arguments.from_run)
    return composed, validate(composed.config, composed.problems, world=world)


def _train(arguments: Arguments) -> int:
    from embedtrain.run import Run, standing

    composed, warnings = _compose(arguments)
    if os.environ.get("RANK", "0") == "0":
        standing(composed.config)  # refuses a directory of another run now, and not after half a minute of imports

    from embedtrain import distributed
    from embedtrain.training.job import run_training
    from embedtrain.training.trainer import Terminated

    _join_ranks()
    run = Run.start(composed.config, composed.overrides, composed.choices)
    if run.finished:
        log.info(
            "%s is finished: there is nothing left to train. Its report: %s\nTo train again choose another run.name.",
            run.dir,
            run.dir / "report.html",
        )
        return 0
    _announce(run, warnings)
    try:
        code = run_training(run.config, run)
    except Terminated as stop:
        log.info("%s", stop)
        return stop.exit_code
    if code == 0 and distributed.is_main():
        run.finish()
    distributed.shutdown()
    return code


def _join_ranks() -> None:
    """The process group that the launcher asked for. Without a GPU accelerate has to be told that CPUs are meant."""
    import torch
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    PartialState()


def _announce(run: Run, warnings: Sequence[str]) -> None:
    log.info("run %s%s", run.dir, ", resumed" if run.resumed else "")
    for note in run.notes:
        log.info("changed since the start: %s", note)
    for warning in warnings:
        log.warning("%s", warning)


def _check(arguments: Arguments) -> int:
    from embedtrain.outlay import read_hardware, read_launch

    output = arguments.take("output", "text", ("text", "json"))
    named = arguments.take("launch", "")
    launch = read_launch(named) if named else None
    world = arguments.take("world", str(launch.world) if launch else os.environ.get("WORLD_SIZE", "1"))
    if not world.isdecimal() or int(world) < 1:
        raise ConfigError(f"world={world}: expected the number of devices, at least 1.")
    row = arguments.take("hardware", "")
    hardware = read_hardware(row) if row else None
    composed, warnings = _compose(arguments, world=int(world))
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


def _evaluate(arguments: Arguments) -> int:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate_evaluation

    output = arguments.take("output", "text", ("text", "json"))
    model = arguments.required("model", "a model folder, a run directory or a name on the hub")
    dim = _dim(arguments)
    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir, from_run=arguments.from_run)
    validate_evaluation(composed.config, composed.problems)

    from embedtrain import distributed
    from embedtrain.evaluation.comparison import percent, result_size
    from embedtrain.inference import evaluate_model

    _join_ranks()
    results = evaluate_model(model, composed.config, dim=dim)
    if distributed.is_main():
        if output == "json":
            print(json.dumps({name: result.metrics for name, result in results.items()}, indent=2))
        for name, result in results.items() if output == "text" else ():
            print(f"{name}{result_size(result)}")
            print(*(f"  {metric:<12} {percent(value):>6}" for metric, value in result.metrics.items()), sep="\n")
    distributed.shutdown()
    return 0


def _dim(arguments: Arguments) -> int | None:
    """Dimensions of the embedding: of the layer that a folder has for them, or its first so many."""
    text = arguments.take("dim", "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"dim={text}: expected a number of dimensions, at least 1.")
    return int(text) if text else None


def _export(arguments: Arguments) -> int:
    run = _run_directory(arguments)
    folder = arguments.take("folder", "")
    _refuse_rest(arguments, "export takes run= and folder=")

    from embedtrain.training.export_run import export_run

    done = export_run(run, Path(folder) if folder else None)
    for note in done.notes:
        print(note)
    print(f"{done.path}: {done.verified_with} gives the same embeddings, cosine at least {done.worst_cosine:.6f}")
    return 0


def _report(arguments: Arguments) -> int:
    run = _run_directory(arguments)
    _refuse_rest(arguments, "report takes run=")

    from embedtrain.evaluation.report import write_report

    write_report(run / "report.html", run)
    print(run / "report.html")
    return 0


def _run_directory(arguments: Arguments) -> Path:
    run = Path(arguments.required("run", "a run directory"))
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"run={run}: {run.absolute()} is no run directory (it has no config.yaml).")
    return run


def _refuse_rest(arguments: Arguments, takes: str) -> None:
    if arguments.overrides:
        raise ConfigError(f"{arguments.overrides[0]}: {takes}.")


def _embed(arguments: Arguments) -> int:
    role = arguments.take("role", "query", ("query", "document"))
    model = arguments.required("model", "a model folder, a run directory or a name on the hub")
    dim = _dim(arguments)
    texts = Path(arguments.required("input", "a file with a text on each line"))
    output = Path(arguments.required("output", "the .npy file to write"))
    context = arguments.take("context", "")
    _refuse_rest(arguments, "embed takes model=, input=, output=, role=, dim= and context=")
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


# What `format=` may be: the names of data/writers.
FORMATS = ("canonical", "flag_embedding", "triplet", "n_tuple", "labeled_list", "tevatron", "beir")


def _mine(arguments: Arguments) -> int:
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

    _join_ranks()
    console.start(main=distributed.is_main())
    for line in run_mining(composed.config, output=output, form=form):
        print(line)
    distributed.shutdown()
    return 0


def _merge(arguments: Arguments) -> int:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.merging import take_request
    from embedtrain.config.validate import validate_merging

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("merge runs as one process: start it without a launcher.")
    output = Path(arguments.required("output", "the folder to write"))
    request = take_request(arguments.overrides)
    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir, from_run=arguments.from_run)
    validate_merging(composed.config, request.kind.reads, composed.problems)

    from embedtrain import log as console
    from embedtrain.merging.command import run_merge

    console.start(main=True)
    for line in run_merge(request, composed.config, output=output):
        print(line, flush=True)
    return 0


def _teach(arguments: Arguments) -> int:
    name = arguments.required("teacher", "a name under teachers")
    composed, _ = _compose(arguments)

    from embedtrain import distributed
    from embedtrain import log as console
    from embedtrain.inference import teach

    _join_ranks()
    console.start(main=distributed.is_main())
    filled = teach(composed.config, name)
    if distributed.is_main():
        done = f"{filled.encoded:,} texts encoded" if filled.encoded else "nothing left to encode"
        print(f"{composed.config['teachers'][name].get('store', name)}: {done}, {filled.there:,} were there")
    distributed.shutdown()
    return 0


def _recipes(arguments: Arguments) -> int:
    from embedtrain.config.cards import cards

    output = arguments.take("output", "text", ("text", "json"))
    found = cards(arguments.config_dir)
    if output == "json":
        print(json.dumps({name: {"about": about, **card} for name, (about, card) in found.items()}, indent=2))
        return 0
    for name, (about, card) in found.items():
        published = ", ".join(
            f"{benchmark} {score}" for benchmark, score in (card.get("scores") or {}).items() if score is not None
        )
        said = {
            "paper": card.get("paper"),
            "published": published,
            "ran": card.get("ran"),
            "not run": card.get("not_run"),
        }
        lines = [*about, *(f"{what:<11}{text}" for what, text in said.items() if text)]
        print(f"{name}\n    " + "\n    ".join(lines))
    return 0


def _smoke(arguments: Arguments) -> int:
    folder = arguments.take("output", "")
    named = next((text.partition("=")[2] for text in arguments.overrides if text.startswith("recipe=")), "")
    if not named:
        raise ConfigError("recipe: required, and not set. Expected recipe=<name>; `embedtrain recipes` lists them.")

    from embedtrain.config.compose import compose_config

    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir)
    place = Path(folder or f"runs/smoke/{Path(named).stem}")
    if (place / "run").exists():
        raise ConfigError(
            f"output={place}: a smoke run is there already. Remove it, or choose another output=<folder>."
        )

    from embedtrain.config.validate import validate
    from embedtrain.run import Run
    from embedtrain.smoke import shrink
    from embedtrain.training.job import run_training

    small = shrink(composed.config, place)
    warnings = validate(small, composed.problems)
    _join_ranks()
    run = Run.start(small, composed.overrides, composed.choices)
    _announce(run, warnings)
    code = run_training(run.config, run)
    if code == 0:
        run.finish()
        log.info("%s fits together: every stage trained, and the model was exported and read again.", Path(named).stem)
    return code


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "train": _train,
    "check": _check,
    "recipes": _recipes,
    "smoke": _smoke,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "embed": _embed,
    "mine": _mine,
    "merge": _merge,
    "teach": _teach,
}
