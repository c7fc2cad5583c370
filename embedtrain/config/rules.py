"""What must hold between keys. A rule yields problems, and regrets: settings that work and may be regretted."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedtrain.config.findings import Finding, Problem, Regret, Rule, kind_of
from embedtrain.config.mining_rules import MINING_RULES
from embedtrain.config.models import models_of

# owner/name, and no file name
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?<!\.jsonl)(?<!\.gz)(?<!\.csv)(?<!\.tsv)(?<!\.parquet)")


def relations(config: dict[str, Any], world: int) -> tuple[list[str], list[str]]:
    """(problems, warnings) of all rules, for a run on `world` ranks."""
    findings = [finding for rule in RULES for finding in rule(config, world)]
    return (
        [f.text for f in findings if isinstance(f, Problem)],
        [f.text for f in findings if isinstance(f, Regret)],
    )


def world_size() -> int:
    """Ranks of this launch, as the launcher says before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def queries_per_micro_batch(config: dict[str, Any], world: int, source: str | None = None) -> float:
    """Queries that see each other's documents: of all ranks, of one micro-batch, which may be of a source."""
    training = config["training"]
    own = config["data"]["sources"][source].get("batch_size") if source else None
    if own is not None:
        return own / training["accumulation_steps"]
    if training["per_device_batch_size"] is not None:
        return training["per_device_batch_size"] * world
    return training["global_batch_size"] / training["accumulation_steps"]


def components(node: Any, source: str | None = None) -> Iterator[dict[str, Any]]:
    """A component and all inside it; of a routed loss those for `source` alone, or for all where that is None."""
    if not isinstance(node, dict):
        return
    inner = list(node.values())
    if "_target_" in node:
        yield node
        if kind_of(node) == "Routed" and source is not None:
            inner = [(node.get("losses") or {}).get(source) or node.get("default")]
    for value in inner:
        yield from components(value, source)


def negatives_read(loss: Any, source: str | None = None) -> set[str]:
    """What a loss and those inside it contrast a query with: "in_batch", "hard_only". Empty for a loss of another kind."""
    return {
        node["negatives"] for node in components(loss, source) if node.get("negatives") in ("in_batch", "hard_only")
    }


def uses_in_batch_negatives(loss: Any, source: str | None = None) -> bool:
    """Whether a loss, or one inside it, contrasts a query with the documents of others."""
    return "in_batch" in negatives_read(loss, source)


def sources_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sources that are not dropped (null), by name."""
    return {name: node for name, node in config["data"]["sources"].items() if node is not None}


def batch_size(config: dict[str, Any], world: int) -> Iterator[Finding]:
    training = config["training"]
    total, own = training["global_batch_size"], training["per_device_batch_size"]
    if total is None and own is None:
        yield Problem(
            "training.global_batch_size: set it (queries per step, all ranks together) or training.per_device_batch_size "
            "(queries per rank and micro-batch); neither is set."
        )
    elif total is not None and own is not None:
        yield Problem(
            f"training.global_batch_size={total} and training.per_device_batch_size={own}: set one of them and the other to "
            "null (training.global_batch_size=null)."
        )
    elif total is not None and total % training["accumulation_steps"]:
        yield Problem(
            f"training.accumulation_steps={training['accumulation_steps']} does not divide "
            f"training.global_batch_size={total}: every micro-batch must hold equally many queries."
        )
    elif total is not None and total // training["accumulation_steps"] < world:
        yield Problem(
            f"training.global_batch_size={total} gives each of {training['accumulation_steps']} micro-batches "
            f"{total // training['accumulation_steps']} queries, fewer than the {world} ranks: some would have none."
        )


def duration(config: dict[str, Any], world: int) -> Iterator[Finding]:
    training = config["training"]
    if training["epochs"] is None and training["max_steps"] is None:
        yield Problem("training.epochs: set it or training.max_steps; neither is set.")
    warmup, steps = config["optim"]["warmup_steps"], training["max_steps"]
    if warmup is not None and steps and warmup >= steps:
        yield Problem(
            f"optim.warmup_steps={warmup}: the run has only training.max_steps={steps}, so it would never leave the warm-up."
        )


def candidates(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A query contrasted with its own positive alone has loss 0 and gradient 0 for ever."""
    if _batch_is_unset(config):
        return
    found: dict[str, Finding] = {}  # one key may be that of several sources
    for name, node in sources_of(config).items():
        reads = negatives_read(config["loss"], name)
        in_batch, queries = "in_batch" in reads, queries_per_micro_batch(config, world, name)
        if not reads or (in_batch and queries >= 2):
            continue
        own = node.get("num_negatives") is not None
        key = f"data.sources.{name}.num_negatives" if own else "data.num_negatives"
        negatives = node["num_negatives"] if own else config["data"]["num_negatives"]
        why = f"a micro-batch has {queries:g} query" if in_batch else "the loss reads a query's own hard negatives only"
        if negatives == 0:
            found[key] = Problem(
                f"{key}=0: {why}, so each query would see 1 candidate, its own positive, and the loss would be 0. "
                f"At least 2 are needed: raise the batch size or {key}."
            )
        elif negatives is None:
            found[key] = Regret(f"{key}: {why}; a row without a hard negative teaches nothing.")
    yield from found.values()


def accumulation(config: dict[str, Any], world: int) -> Iterator[Finding]:
    steps = config["training"]["accumulation_steps"]
    if steps == 1 or not uses_in_batch_negatives(config["loss"]) or _batch_is_unset(config):
        return
    own = queries_per_micro_batch(config, world)
    yield Regret(
        f"training.accumulation_steps={steps}: micro-batches do not see each other, so a query has {own - 1:g} other queries' "
        f"documents as negatives and not {own * steps - 1:g}. Memory is bounded by training.chunk_tokens already; for all "
        "negatives at the same memory: training.accumulation_steps=1 training.cached_share=1.0"
    )


def _batch_is_unset(config: dict[str, Any]) -> bool:
    training = config["training"]
    return (training["global_batch_size"] is None) == (training["per_device_batch_size"] is None)


def sources(config: dict[str, Any], world: int) -> Iterator[Finding]:
    if not sources_of(config):
        yield Problem(
            "data.sources: there is nothing to train on. For a file of your own: data=pairs data.path=pairs.jsonl; for another "
            "source: source@data.sources.<name>=jsonl data.sources.<name>.path=pairs.jsonl"
        )
    for name in config["data"]["sources"]:
        if "/" in name:
            yield Problem(f"data.sources.{name}: expected a name without '/', which stands before the part of a table.")
    unknown = (
        set(config["prompts"]["sources"]) - set(config["data"]["sources"]) - set(config["evaluation"]["evaluators"])
    )
    for name in sorted(unknown):
        yield Problem(
            f"prompts.sources.{name}: there is no source or evaluator of that name. There are: "
            f"{', '.join([*config['data']['sources'], *config['evaluation']['evaluators']]) or 'none'}."
        )


def split_tables(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """Only a source of the mixture can become several."""
    for place, node in _nodes(config, ""):
        if node.get("split_by") is not None and not re.fullmatch(r"(stages\.[^.]+\.)?data\.sources\.[^.]+", place):
            yield Problem(
                f"{place}.split_by={node['split_by']}: a source inside another component stays one. Set it to null here."
            )


def _nodes(node: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping in a part of the config, with its key."""
    if isinstance(node, dict):
        yield place, node
        for key, inner in node.items():
            yield from _nodes(inner, f"{place}.{key}" if place else str(key))


def equal_parts(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A batch of several sources is cut into as many parts. How many sources there are is known with the data."""
    data, batch = config["data"], config["training"]["global_batch_size"]
    key = f"data.sources_per_batch={data['sources_per_batch']}"
    if data["sources_per_batch"] == 1:
        return
    if data["batching"] == "blended":
        yield Problem(
            f"{key}: with data.batching=blended a batch is of all sources. Set data.batching=one_source, or "
            "data.sources_per_batch=1."
        )
    if batch and batch % data["sources_per_batch"]:
        yield Problem(f"{key} does not divide training.global_batch_size={batch}: each source brings an equal part.")
    for name, node in sources_of(config).items():
        for setting in ("batch_size", "texts_per_label"):
            if node.get(setting) is not None:
                yield Problem(
                    f"data.sources.{name}.{setting}={node[setting]}: with {key} a batch is of several sources. Set "
                    "data.sources_per_batch=1, or this to null."
                )
    if data["neighbourhoods"]:
        yield Problem(
            f"data.neighbourhoods: with {key} a batch is of several sources, and clusters are of one. Set "
            "data.sources_per_batch=1, or data.neighbourhoods to null."
        )


def source_batches(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A batch of a source is shared by micro-batches and ranks as any other, and holds whole classes where that is asked."""
    training = config["training"]
    steps = training["accumulation_steps"]
    for name, node in sources_of(config).items():
        own, per_label = node.get("batch_size"), node.get("texts_per_label")
        for key, value in (("batch_size", own), ("texts_per_label", per_label)):
            if value is not None and config["data"]["batching"] == "blended":
                yield Problem(
                    f"data.sources.{name}.{key}={value}: with data.batching=blended a batch is of all sources. Set "
                    "data.batching=one_source, or this to null."
                )
        if own is not None and own % steps:
            yield Problem(
                f"training.accumulation_steps={steps} does not divide data.sources.{name}.batch_size={own}: every micro-batch "
                "must hold equally many queries."
            )
        elif own is not None and own // steps < world:
            yield Problem(
                f"data.sources.{name}.batch_size={own} gives each of {steps} micro-batches {own // steps} queries, fewer than "
                f"the {world} ranks: some would have none."
            )
        batch = own or training["global_batch_size"]
        if per_label and batch and (batch % per_label or batch < 2 * per_label):
            yield Problem(
                f"data.sources.{name}.texts_per_label={per_label}: batches of this source have {batch} queries, which is not 2 "
                f"or more classes of {per_label}. Set data.sources.{name}.batch_size to a multiple of it."
            )


def source_lengths(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A model is measured and exported with the lengths of encoder.*."""
    for name, node in sources_of(config).items():
        for key in ("max_query_length", "max_document_length"):
            if (node.get(key) or 0) > config["encoder"][key]:
                yield Regret(
                    f"data.sources.{name}.{key}={node[key]}: the model is evaluated and exported with "
                    f"encoder.{key}={config['encoder'][key]}, so it is trained on more of a text than it will read."
                )


def graded(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A contrastive loss takes the document of a graded pair for a positive, whatever its score."""
    for name, node in sources_of(config).items():
        reads_scores = any(
            part in str(inner["_target_"])
            for inner in components(config["loss"], name)
            for part in (".ranking.", ".distillation.")
        )
        if node.get("score_range") and negatives_read(config["loss"], name) and not reads_scores:
            yield Regret(
                f"data.sources.{name}.score_range: its pairs are graded, and its loss takes each for a positive, also those with "
                f"score 0. Give the source a loss for grades: loss=routed '+loss@loss.losses.{name}=cosent'"
            )


def examples_of_classes(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """Texts of a row's class are no negatives of it; a hard negative in another row's batch does not say its class."""
    for name, node in sources_of(config).items():
        if kind_of(node) != "LabeledTexts" or node.get("form") == "label":
            continue
        if not uses_in_batch_negatives(config["loss"], name):
            continue
        hard = config["data"]["num_negatives"] if node.get("num_negatives") is None else node["num_negatives"]
        if not any(kind_of(inner) == "SameClassFilter" for inner in components(config["loss"], name)):
            yield Regret(
                f"data.sources.{name}: texts of its classes, and in-batch negatives that may be of the row's own class. Use "
                "loss=class_masked, or each query's own negatives alone (loss.negatives=hard_only)."
            )
        elif hard != 0:
            yield Regret(
                f"data.sources.{name}.num_negatives: among in-batch negatives the hard negative of another row may be of the "
                "row's own class, which nothing says. Set it to 0, or use loss.negatives=hard_only."
            )


def paths(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """Files and folders that components read. Relative ones start where the command was started."""
    named = [
        *_paths(config["data"]["sources"], "data.sources"),
        *_paths(config["evaluation"]["evaluators"], "evaluation.evaluators"),
    ]
    # Several components may read one file: the key that the user set is named, once.
    keys = {path: place for place, path in reversed(named)}
    if config["data"]["path"] in keys:
        keys[config["data"]["path"]] = "data.path"
    for path, place in keys.items():
        if not Path(path).expanduser().exists():
            yield Problem(f"{place}: there is no file or folder {Path(path).expanduser().absolute()}.")


def _paths(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if not isinstance(node, dict):
        return
    kind = kind_of(node)
    for name, value in node.items():
        # Some sources also take the name of a data set on the hub; theirs to say whether there is one.
        on_hub = kind in ("HuggingFaceDataset", "LabeledTexts", "PairsFile") and _HUB_NAME.fullmatch(str(value))
        if name == "path" and isinstance(value, str) and not on_hub:
            yield f"{key}.path", value
        yield from _paths(value, f"{key}.{name}")


def backbone(config: dict[str, Any], world: int) -> Iterator[Finding]:
    for key, model in models_of(config["backbone"]).items():
        if model.get("trust_remote_code"):
            yield Regret(f"{key}.trust_remote_code=true: Python code of the model's author will run on this machine.")
        dtype = model.get("dtype", "float32")
        if dtype != "float32" and not model.get("lora"):
            yield Problem(
                f"{key}.dtype={dtype} is for frozen weights, but without {key}.lora every weight trains, and small updates "
                "are lost in it. Use float32 here and training.mixed_precision=bf16."
            )
        if model.get("attention") == "soft" and config["training"]["early_stop"]["patience"] is not None:
            yield Problem(
                f"training.early_stop.patience: could end the run before the soft mask of {key} is open. Set it to null, or "
                "take another attention."
            )


def auxiliary_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The objectives added to the loss that are not dropped (null), by name."""
    return {name: node for name, node in config["auxiliary"].items() if node is not None}


def auxiliary(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """An objective is added to a loss, with a weight that somebody chose."""
    added = auxiliary_of(config)
    for name, node in added.items():
        weight = node.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            yield Problem(f"auxiliary.{name}.weight: expected a number above 0, got {weight!r}.")
    if added and config["objective"]:
        yield Problem(
            "auxiliary: is added to a loss, and this run trains by an objective. Set auxiliary={}, or choose a loss."
        )


def what_is_learned(config: dict[str, Any], world: int) -> Iterator[Finding]:
    if config["loss"] and config["objective"]:
        yield Problem(
            "loss and objective: a run, or a stage of one, trains by one of them. Set loss=null, or objective=null."
        )


def texts_alone(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A text that is its own positive teaches contrast only through the two dropout masks (SimCSE, arXiv:2104.08821)."""
    alone = [name for name, node in sources_of(config).items() if kind_of(node) == "Texts"]
    if alone and config["loss"] and config["backbone"].get("dropout") == 0:
        yield Regret(
            f"backbone.dropout=0: in data.sources.{alone[0]} a text is its own positive, and without dropout both have the very "
            "same embedding, so nothing is left to pull together. SimCSE uses 0.1."
        )


def teachers(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """A teacher embeds every batch, whether or not a loss reads it."""
    named = set(_words([config["loss"], config["stages"], config["data"]["sources"]]))
    for name, node in config["teachers"].items():
        if node is not None and name not in named:
            yield Regret(
                f"teachers.{name}: no loss reads it, and yet it embeds every batch. Take it out: ~teachers.{name}"
            )


def _words(node: Any) -> Iterator[str]:
    """Every text value in a part of the config."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _words(inner)


def precision(config: dict[str, Any], world: int) -> Iterator[Finding]:
    if config["training"]["mixed_precision"] == "fp16":
        yield Regret(
            "training.mixed_precision=fp16: large models overflow its range (65504) and a low temperature is unstable in it. "
            "bf16 has the range of fp32 at the same speed."
        )


def prompts(config: dict[str, Any], world: int) -> Iterator[Finding]:
    wanted = {"": config["prompts"], **{f"sources.{k}.": v or {} for k, v in config["prompts"]["sources"].items()}}
    for place, prompt in wanted.items():
        for role in ("query", "document"):
            if (prompt.get(role) or "").count("{text}") > 1:
                yield Problem(f"prompts.{place}{role}: {{text}} may stand in it once; it is the place of the text.")
        if "{instruction}" in (prompt.get("document") or ""):
            yield Problem(
                f"prompts.{place}document: {{instruction}} may stand in the query prompt only; a document has no task."
            )
        if "{instruction}" in (prompt.get("query") or "") and not config["prompts"]["instructions"]:
            yield Problem(
                f"prompts.{place}query: {{instruction}} would stay empty with prompts.instructions=false. Take it out, or set "
                "prompts.instructions=true."
            )
    for name, prompt in config["prompts"]["sources"].items():
        for key in sorted(set(prompt or {}) - {"query", "document"}):
            yield Problem(f"prompts.sources.{name}.{key}: expected query or document.")


def groups(config: dict[str, Any], world: int) -> Iterator[Finding]:
    for pattern, values in config["optim"]["groups"].items():
        if not isinstance(values, dict) or not values or set(values) - {"learning_rate", "weight_decay"}:
            yield Problem(
                f"optim.groups.{pattern}: expected {{learning_rate: ..., weight_decay: ...}} or one of them, got {values!r}."
            )
    if len(config["optim"]["betas"]) != 2 or not all(0 <= beta < 1 for beta in config["optim"]["betas"]):
        yield Problem(f"optim.betas: expected two numbers in [0, 1), got {config['optim']['betas']!r}.")


def evaluation(config: dict[str, Any], world: int) -> Iterator[Finding]:
    evaluators = [name for name, node in config["evaluation"]["evaluators"].items() if node is not None]
    training = config["training"]
    stop = training["early_stop"]
    if not evaluators:
        if training["evaluate_every"] is not None:
            yield Problem("training.evaluate_every: there is nothing to evaluate; evaluation.evaluators is empty.")
        if stop["patience"] is not None:
            yield Problem(
                "training.early_stop.patience: needs something to get better; evaluation.evaluators is empty."
            )
        if config["evaluation"]["before"] or config["evaluation"]["after"]:
            yield Regret("evaluation.evaluators: empty, so nothing will say whether the model got better.")
    elif stop["patience"] is not None and training["evaluate_every"] is None:
        yield Problem(
            "training.early_stop.patience: set training.evaluate_every (steps); without it nothing is measured on the way."
        )
    for key, value in (
        ("evaluation.primary", config["evaluation"]["primary"]),
        ("training.early_stop.metric", stop["metric"]),
    ):
        if value is not None and value.partition("/")[0] not in evaluators:
            yield Problem(
                f"{key}={value}: expected <evaluator>/<metric> with an evaluator of: {', '.join(evaluators) or 'none'}."
            )


def tracker_packages(config: dict[str, Any], world: int) -> Iterator[Finding]:
    needs = {"WandbTracker": ("wandb", "wandb"), "TensorBoardTracker": ("tensorboard", "tensorboard")}
    for name, node in config["trackers"].items():
        kind = kind_of(node)
        if kind in needs and not _is_installed(needs[kind][0]):
            yield Problem(
                f"trackers.{name}: the package {needs[kind][0]} is not installed. pip install 'embedtrain[{needs[kind][1]}]'"
            )


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder ./wandb of earlier runs is no package


def neighbourhoods(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """Rows that are alike make hard negatives of each other, where a loss reads them, and false ones."""
    if not config["data"]["neighbourhoods"]:
        return
    if config["data"]["batching"] == "blended":
        yield Problem(
            "data.neighbourhoods: with data.batching=blended a batch is of all sources, and clusters are of one. Set "
            "data.batching=one_source, or data.neighbourhoods to null."
        )
    for name, node in sources_of(config).items():
        if node.get("texts_per_label") is not None:
            yield Problem(
                f"data.sources.{name}.texts_per_label={node['texts_per_label']}: with data.neighbourhoods the model says which "
                "rows make a batch, and here the classes do. Set one of them to null."
            )
    reads = negatives_read(config["loss"])
    filters = ("GuideFilter", "FalseNegativeFilter")
    if config["objective"] or reads == {"hard_only"}:
        yield Regret(
            "data.neighbourhoods: nothing contrasts a query with the documents of its batch, so it does not matter which rows "
            "share one. Leave it out, or use a loss with negatives=in_batch."
        )
    elif "in_batch" in reads and not any(kind_of(node) in filters for node in components(config["loss"])):
        yield Regret(
            "data.neighbourhoods: among rows that are alike, documents of others may well answer a query, and the loss pushes "
            "them away. Filter them: loss=cde, or loss.modifiers (guide, false_negatives)."
        )


RULES: tuple[Rule, ...] = (
    batch_size,
    duration,
    candidates,
    accumulation,
    sources,
    split_tables,
    equal_parts,
    source_batches,
    source_lengths,
    graded,
    examples_of_classes,
    paths,
    backbone,
    what_is_learned,
    auxiliary,
    texts_alone,
    teachers,
    precision,
    prompts,
    groups,
    evaluation,
    tracker_packages,
    neighbourhoods,
    *MINING_RULES,
)
