"""The command line: one grammar, `embedtrain <command> recipe=<name> key=value ...`.

Whatever is wrong with the arguments or the config is said before torch is imported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from embedtrain.commands import check, embed, evaluate, export, merge, mine, recipes, report, smoke, teach
from embedtrain.commands import train as training
from embedtrain.commands.arguments import Arguments, parse
from embedtrain.errors import ConfigError, EmbedtrainError

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

COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "train": training.main,
    "check": check.main,
    "recipes": recipes.main,
    "smoke": smoke.main,
    "evaluate": evaluate.main,
    "export": export.main,
    "report": report.main,
    "embed": embed.main,
    "mine": mine.main,
    "merge": merge.main,
    "teach": teach.main,
}


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
