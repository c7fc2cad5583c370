"""`embedtrain merge`: several models, a method, one model folder that is checked, described and compared with what it is made of.

1. Find the models; refuse those that do not belong together.      inputs.py, compatibility.py
2. Measure or search, where the method reads more than weights.    fitting.py
3. Merge tensor by tensor into a folder beside the output.         states.py, weights.py
4. Evaluate it and every input, where evaluators are given.
5. Export it: reloaded in a fresh process, compared, with a card.  embedtrain.export
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch

from embedtrain.assemble import build_evaluators
from embedtrain.backbones.locate import locate
from embedtrain.config.build import build
from embedtrain.config.merging import MergeRequest
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.export.load import load_encoder
from embedtrain.export.record import MergeRecord, MetricRecord, RunRecord
from embedtrain.export.sentence_transformers import Dtype, Similarity, export
from embedtrain.merging.compatibility import refuse_incompatible
from embedtrain.merging.fitting import Setting, fit_fisher, fit_position, fit_regmean
from embedtrain.merging.inputs import Model, expanded, read_base, read_model
from embedtrain.merging.methods.base import TensorMethod
from embedtrain.merging.methods.fisher import Fisher
from embedtrain.merging.methods.greedy_soup import GreedySoup, greedy
from embedtrain.merging.methods.regmean import RegMean
from embedtrain.merging.methods.self_positioning import SelfPositioning
from embedtrain.merging.states import merge_states
from embedtrain.merging.tables import position_path, scores_table, soup_path
from embedtrain.merging.weights import write_folder

log = logging.getLogger("embedtrain")

Results = dict[str, EvaluationResult]
Evaluate = Callable[[Encoder], Results]


def run_merge(request: MergeRequest, config: Mapping[str, Any], *, output: Path) -> Iterator[str]:
    """Merges and writes `output`. Yields what to tell the user, as it is known.

    Raises ConfigError where the output is taken or the models do not belong together, CheckpointError for a model that cannot be
    read or a folder that does not give the merged encoder's embeddings.
    """
    _refuse_taken(output)
    names = expanded(request.models)
    if len(names) < 2 and not request.kind.base:
        raise ConfigError(f"models: {request.method} wants at least two, found {', '.join(names)}.")
    with _scratch(output) as scratch:
        models = [read_model(name, scratch / f"model_{number}") for number, name in enumerate(names)]
        base = None if request.base is None else read_base(request.base, scratch / "as_base")
        refuse_incompatible(models, base)
        start = "" if base is None else f", from the base {base.name}"
        yield f"{request.method} of {', '.join(names)}{start}: {len(models[0].weights)} tensors"
        evaluate = _evaluation(config)
        measured = {model.name: evaluate(load_encoder(model.folder)) for model in models} if evaluate else {}

        setting = Setting(models, base, config, scratch, _device())
        method, said = _fitted(request, setting, evaluate, measured)
        yield from said
        folder = _merged(method, models, base, scratch / "merged")
        encoder = load_encoder(folder).to(setting.device)
        yield from _keep_prompts(encoder, models)
        results = evaluate(encoder) if evaluate else {}
        dtype = request.dtype or str(models[0].weights.dtype).removeprefix("torch.")
        assert models[0].settings is not None
        done = export(
            encoder,
            output,
            probes=[],
            record=_record(request, names, method, measured, results, output),
            similarity=cast(Similarity, _similarity(models[0])),
            dtype=cast(Dtype, dtype),
        )
    yield from done.notes
    if evaluate:
        table = scores_table(measured, results, name=output.name, resamples=config["evaluation"]["resamples"])
        yield table
    else:
        yield "not evaluated: no evaluators were given (evaluation=beir evaluation.evaluators.beir.path=<folder>)"
    yield f"{done.path}: {done.verified_with} gives the same embeddings, cosine at least {done.worst_cosine:.6f}"


def _fitted(
    request: MergeRequest, setting: Setting, evaluate: Evaluate | None, measured: Mapping[str, Results]
) -> tuple[TensorMethod, Iterable[str]]:
    """The function of a tensor that the method comes to, and what it found on the way."""
    method: Any = build({"_target_": request.kind.target, **request.parameters})
    names = [model.name for model in setting.models]
    if isinstance(method, Fisher):
        return fit_fisher(method, setting), []
    if isinstance(method, RegMean):
        return fit_regmean(method, setting), []
    if isinstance(method, SelfPositioning):
        position, steps = fit_position(method, setting)
        return position, [position_path(steps, names)]
    if isinstance(method, GreedySoup):
        assert evaluate is not None, "validate_merging refuses a greedy soup without evaluators"
        primary = setting.config["evaluation"]["primary"]

        def score_of(soup: tuple[int, ...]) -> float:
            folder = _merged(method.of(soup, len(names)), setting.models, None, setting.scratch / "soup")
            found = _score(evaluate(load_encoder(folder)), primary)
            shutil.rmtree(folder)
            return found

        path = greedy([_score(measured[name], primary) for name in names], score_of)
        soup = [trial for trial in path if trial.taken][-1].models
        return method.of(soup, len(names)), [soup_path(path, names)]
    return method, []


def _merged(method: TensorMethod, models: Sequence[Model], base: Model | None, target: Path) -> Path:
    states = [model.weights for model in models]
    return write_folder(target, states[0], merge_states(method, states, None if base is None else base.weights))


def _keep_prompts(encoder: Encoder, models: Sequence[Model]) -> Iterator[str]:
    """Prompts of single sources, of whichever model has them. Says which could not be kept."""
    sources: dict[str, dict[str, str]] = {}
    for model in models:
        assert model.settings is not None
        for name, prompt in model.settings.prompts.items():
            source, _, role = name.rpartition("_")
            if not source or role not in ("query", "document"):
                if prompt and name not in ("query", "document"):
                    yield f"the prompt {name!r} of {model.name} belongs to no role and is left out: {prompt!r}"
                continue
            known = sources.setdefault(source, {}).setdefault(role, prompt)
            if known != prompt:
                raise ConfigError(
                    f"models: the prompt {name!r} is {prompt!r} in {model.name} and {known!r} in another model."
                )
    encoder.tokenizer.prompts.sources = sources


def _evaluation(config: Mapping[str, Any]) -> Evaluate | None:
    evaluators = build_evaluators(config)
    if not evaluators:
        return None

    def evaluate(encoder: Encoder) -> Results:
        encoder = encoder.to(_device())
        return {name: evaluator(encoder, show_progress=True) for name, evaluator in evaluators.items()}

    return evaluate


def _score(results: Results, primary: str | None) -> float:
    """evaluation.primary, or the first evaluator's own."""
    if primary is None:
        return next(iter(results.values())).score
    name, _, metric = primary.partition("/")
    if name not in results or metric not in results[name].metrics:
        there = ", ".join(f"{key}/{known}" for key, result in results.items() for known in result.metrics)
        raise ConfigError(f"evaluation.primary={primary}: expected one of {there}.")
    return results[name].metrics[metric]


def _record(
    request: MergeRequest,
    names: Sequence[str],
    method: TensorMethod,
    measured: Mapping[str, Results],
    results: Results,
    output: Path,
) -> RunRecord:
    """The card's facts. What was found by a search stands in it as the numbers that were found."""
    settings = {
        item.name: getattr(method, item.name) for item in fields(cast(Any, method)) if item.name != "statistics"
    }
    best = {name: max(of_model[name].score for of_model in measured.values()) for name in results}
    metrics = [
        MetricRecord(evaluator=name, metric=result.primary, before=best[name], after=result.score)
        for name, result in results.items()
    ]
    return RunRecord(
        name=output.name,
        base_model=names[0] if request.base is None else request.base,
        metrics=tuple(metrics),
        limits=tuple(_limits(request, results)),
        merge=MergeRecord(
            method=request.method,
            models=tuple(names),
            base=request.base,
            published=tuple(
                name
                for name in (request.base, *names)
                if name and Path(locate(name)) == Path(name) and not Path(name).exists()
            ),
            parameters={key.removesuffix("_"): value for key, value in {**request.parameters, **settings}.items()},
        ),
        command=shlex.join(["embedtrain", *sys.argv[1:]]),
    )


def _limits(request: MergeRequest, results: Results) -> Iterator[str]:
    if results:
        yield "In the evaluation `before` is the best of the models that were merged, in each metric by itself."
    if request.method == "greedy_soup":
        yield "The models were chosen by the same evaluation, so its figures are too good."


def _similarity(model: Model) -> str:
    assert model.settings is not None
    known = ("cosine", "dot", "euclidean", "manhattan")
    return model.settings.similarity if model.settings.similarity in known else "cosine"


def _refuse_taken(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output={output}: is there already. Choose another folder, or remove it.")


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """`<output>.merging`, for as long as the merge takes: inputs that are written anew, and the merged weights."""
    folder = output.with_name(f"{output.name}.merging")
    shutil.rmtree(folder, ignore_errors=True)  # of a merge that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
