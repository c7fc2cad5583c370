"""Ablations of papers, each as a small experiment on real data: which hold here, which do not, and how sure that is.

    python benchmarks/claims.py run [--seeds 0,1] [--only 'routed,one loss']    what is not measured yet; can be stopped
    python benchmarks/claims.py table      -> benchmarks/results/claims.json, claims.md and docs/claims.md

What objectives.py and mining_quality.py have measured is read from their results and not measured again. This program adds what
they have not: a loss for each source, merged models, stages, and a longer distillation (claim_arms.py).

Two intervals of 95 %: Student's t over seeds, of the paired difference (same seed, same batches), and the paired bootstrap over
queries, of the mean over seeds (for Spearman, over pairs, with the ranks held fixed). A claim holds, or does not, where all
intervals that can be had leave out zero on one side; else it is undecided.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claim_arms import ARMS, MEASURES, MIXTURES, SEEDS, mean, run
from embedtrain.evaluation.statistics import paired_bootstrap

RESULTS = Path(__file__).parent / "results"
VERDICTS, TABLE = RESULTS / "claims.json", RESULTS / "claims.md"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "claims.md"


@dataclass(frozen=True)
class Side:
    """What is compared: an arm of a program, or of several the one with the highest mean of the measures, seed by seed."""

    program: str  # claims | objectives | mining_quality
    arms: tuple[str, ...]
    task: str = ""

    def values(self, measure: str) -> dict[int, list[float]]:
        """Seed -> value of each query, or one value alone where no more was kept."""
        found = [arm_values(self.program, self.task, arm, measure) for arm in self.arms]
        seeds = set(found[0]).intersection(*found)
        if len(found) == 1:
            return found[0]
        ranked = [arm_values(self.program, self.task, arm, "mean") for arm in self.arms]
        best = {seed: max(range(len(found)), key=lambda place: ranked[place][seed][0]) for seed in seeds}
        return {seed: found[best[seed]][seed] for seed in seeds}


@cache
def cells_of(program: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{program}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def arm_values(program: str, task: str, arm: str, measure: str) -> dict[int, list[float]]:
    cells = cells_of(program)
    if program == "objectives":
        own = [c for c in cells if (c["task"], c["name"]) == (task, arm)]
        return {c["seed"]: [c["measured"][measure]] for c in own}
    if program == "mining_quality":
        return {c["seed"]: c[measure] for c in cells if (c["task"], c["strategy"]) == (task, arm)}
    own = [c for c in cells if c["arm"] == arm]
    if measure == "mean":
        return {c["seed"]: [mean(mean(values) for values in c["measured"].values())] for c in own}
    return {c["seed"]: c["measured"][measure] for c in own}


@dataclass(frozen=True)
class Paper:
    name: str
    published: str  # its own number for the same comparison


@dataclass(frozen=True)
class Claim:
    """That one side is above another in a measure, as a paper says."""

    text: str
    paper: Paper
    above: Side
    below: Side
    measure: str
    below_measure: str | None = None  # where the two sides are measured in different ways
    slack: float = 0.0  # points that the first may fall short and the claim still hold

    def verdict(self) -> Verdict:
        below = self.below.values(self.below_measure or self.measure)
        return judge(self.above.values(self.measure), below, self.slack)

    @property
    def command(self) -> str:
        side = self.above
        if side.program == "claims":
            arms = dict.fromkeys([*self.above.arms, *self.below.arms])
            return f"claims.py run --only '{','.join(arms)}'"
        cells = dict.fromkeys(f"{side.task}/{arm}" for arm in (*self.above.arms, *self.below.arms))
        return f"{side.program}.py run --only '{','.join(cells)}'"


@dataclass(frozen=True)
class Verdict:
    seeds: int
    above: float | None = None
    below: float | None = None
    over_seeds: tuple[float, float] | None = None  # 95 % interval of the difference
    over_queries: tuple[float, float] | None = None
    says: str = "not measured"


def judge(first: Mapping[int, list[float]], second: Mapping[int, list[float]], slack: float) -> Verdict:
    """`first`, `second`: seed -> values of queries. See the module for when a claim holds."""
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return Verdict(0)
    one, other = ([side[seed] for seed in seeds] for side in (first, second))
    gaps = [mean(a) - mean(b) for a, b in zip(one, other, strict=True)]
    over_seeds = over_queries = None
    if len(seeds) > 1:
        half = float(stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps))
        over_seeds = (mean(gaps) - half, mean(gaps) + half)
    if len(one[0]) > 1:
        new, old = ({str(q): mean(each) for q, each in enumerate(zip(*side, strict=True))} for side in (one, other))
        drawn = paired_bootstrap("difference", old, new)
        assert drawn.low is not None
        assert drawn.high is not None
        over_queries = (drawn.low, drawn.high)
    known = [interval for interval in (over_seeds, over_queries) if interval is not None]
    if over_seeds is None:
        says = "undecided"
    elif all(low + slack > 0 for low, _ in known):
        says = "holds"
    elif all(high + slack < 0 for _, high in known):
        says = "does not hold"
    else:
        says = "undecided"
    return Verdict(len(seeds), mean(map(mean, one)), mean(map(mean, other)), over_seeds, over_queries, says)


def mined(task: str) -> tuple[Side, Side]:
    return of("mining_quality", "percent_of_positive", task=task), of("mining_quality", "top_k", task=task)


def to_infonce(name: str, task: str) -> tuple[Side, Side]:
    return of("objectives", name, task=task), of("objectives", "infonce", task=task)


def of(program: str, *arms: str, task: str = "") -> Side:
    return Side(program, arms, task)


def own(*pairs: str) -> tuple[Side, Side]:
    first, second = pairs
    return of("claims", first), of("claims", second)


NV_RETRIEVER = Paper("NV-Retriever, arXiv:2407.15831", "+4.5 nDCG@10 (54.07 to 58.56)")
LLAVE = Paper("LLaVE, arXiv:2503.04812", "+1.1 (MMEB 64.0 to 65.1)")
LLAVE_FIGURE = Paper("LLaVE, arXiv:2503.04812", "a figure")
KALM = Paper("KaLM v2.5, arXiv:2506.20923", "+0.6 English, +1.5 Chinese MTEB")
GIST = Paper("GISTEmbed, arXiv:2402.16829", "above its base models; a run without a guide: no number found")
LEAF = Paper("LEAF, arXiv:2509.12539", "BEIR 53.9, first of its size; a contrastive student: no number found")
LEAF_OWN = Paper("LEAF, arXiv:2509.12539", "+0.9 (BEIR 53.9 to 54.8)")
STARBUCKS = Paper("Starbucks, arXiv:2410.13230", "in words; no number found")
GEMMA = Paper("EmbeddingGemma, arXiv:2509.20354", "+0.8 (MMTEB 60.4 to 61.2)")
GEMMA_QAT = Paper(
    "EmbeddingGemma, arXiv:2509.20354",
    "MMTEB 61.15 whole, 60.62 trained for 4 bits; rounded afterwards: no number found",
)
SELF_POSITIONING = Paper("Self Positioning, arXiv:2410.15035", "in words: best of the methods without data")
CDE = Paper("CDE, arXiv:2410.02525", "+1.2 (MTEB 63.8 to 65.0)")
CDE_PLAIN = Paper("CDE, arXiv:2410.02525", "in words (abstract): better than biencoders, most so out of domain")
NV_EMBED = Paper("NV-Embed v2, arXiv:2405.17428", "+1.5 (MTEB 70.83 to 72.31)")
NV_EMBED_OWN = Paper("NV-Embed v2, arXiv:2405.17428", "+0.4 (MTEB 71.94 to 72.31)")
CODIEMB = Paper("CoDiEmb, arXiv:2508.11442", "in words; no number found")

FULL, ASYMMETRIC = "ndcg@10", "ndcg@10 with the teacher's documents"
WEIGHTED, GUIDED, MATCHED = "hardness_weighted", "gist (guide)", "leaf (embedding match)"
SUB_MODELS = of("objectives", "starbucks (fixed list)", task="layers"), of("objectives", "2DMSE (drawn)", task="layers")
SOUP = of("claims", "soup"), of("claims", *MIXTURES)
FAST, SLOW = own("leaf long 5e-4", "infonce long 5e-4"), own("leaf long 1e-4", "infonce long 1e-4")
STAGES = own("two stages", "one stage")
ROUTED = own("routed", "one loss")
CONTEXT = own("context of the corpus", "no context")
IN_FOUR_BITS = own("trained for 4 bits", "rounded to 4 bits afterwards")

CLAIMS = [
    Claim("Negatives below 95 % of the positive beat the nearest: StackFAQ", NV_RETRIEVER, *mined("stackfaq"), FULL),
    Claim("the same: SciFact", NV_RETRIEVER, *mined("scifact"), FULL),
    Claim("Hardness weights rank better than plain InfoNCE: StackFAQ", LLAVE, *to_infonce(WEIGHTED, "stackfaq"), FULL),
    Claim("the same: SciFact", LLAVE, *to_infonce(WEIGHTED, "scifact"), FULL),
    Claim(
        "... and separate positives from near negatives (d'): StackFAQ",
        LLAVE_FIGURE,
        *to_infonce(WEIGHTED, "stackfaq"),
        "separation",
    ),
    Claim("the same: SciFact", LLAVE_FIGURE, *to_infonce(WEIGHTED, "scifact"), "separation"),
    Claim("Focal weights rank better than plain InfoNCE: StackFAQ", KALM, *to_infonce("focal", "stackfaq"), FULL),
    Claim("A guide helps where answers are unmarked: StackFAQ, planted", GIST, *to_infonce(GUIDED, "planted"), FULL),
    Claim(
        "A student of vectors beats a contrastive one among the teacher's documents",
        LEAF,
        *to_infonce(MATCHED, "distil"),
        ASYMMETRIC,
    ),
    Claim("the same: three times the steps, 1e-4", LEAF, *SLOW, "asymmetric"),
    Claim("the same: three times the steps, 5e-4", LEAF, *FAST, "asymmetric"),
    Claim("... and among documents of its own: three times the steps, 5e-4", LEAF, *FAST, "faq"),
    Claim(
        "Its queries rank the teacher's documents better than its own", LEAF_OWN, FAST[0], FAST[0], "asymmetric", "faq"
    ),
    Claim("A fixed list of sub-models beats drawn ones: mean of the list", STARBUCKS, *SUB_MODELS, "mean"),
    Claim("The average of three mixtures beats the best of them: mean", GEMMA, *SOUP, "mean"),
    Claim("the same: StackFAQ", GEMMA, *SOUP, "faq"),
    Claim("the same: STS-B", GEMMA, *SOUP, "sts"),
    Claim("Slerp beats the average", SELF_POSITIONING, *own("slerp", "soup"), "mean"),
    Claim("Two stages beat one with in-batch negatives: mean", NV_EMBED, *STAGES, "mean"),
    Claim("the same: StackFAQ", NV_EMBED, *STAGES, "faq"),
    Claim("the same: Banking77", NV_EMBED, *STAGES, "banking"),
    Claim(
        "Two stages beat one with own negatives alone: mean",
        NV_EMBED_OWN,
        *own("two stages", "one stage (own negatives)"),
        "mean",
    ),
    Claim("A loss for graded pairs beats InfoNCE for all: STS-B", CODIEMB, *ROUTED, "sts"),
    Claim("... and costs StackFAQ at most a point", CODIEMB, *ROUTED, "faq", slack=1.0),
    Claim("A contextual model is better behind the corpus than behind nothing", CDE, *CONTEXT, "faq"),
    Claim("... and better than the same encoder without a context", CDE_PLAIN, CONTEXT[0], SLOW[1], "faq"),
    Claim("Training for 4 bits beats rounding to them afterwards", GEMMA_QAT, *IN_FOUR_BITS, "faq"),
    Claim("... and costs at most a point of the whole weights", GEMMA_QAT, IN_FOUR_BITS[0], SLOW[1], "faq", slack=1.0),
]


# ------------------------------------------------------------------------------------------------------------ table


def rows() -> list[dict[str, Any]]:
    return [
        {
            "claim": claim.text,
            "paper": claim.paper.name,
            "published": claim.paper.published,
            "measure": claim.measure,
            **asdict(claim.verdict()),
            "command": f"python benchmarks/{claim.command}",
        }
        for claim in CLAIMS
    ]


def table(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| claim | paper | published | here | seeds | queries | verdict | n seeds |", "|---" * 8 + "|"]
    for row in found:
        here = "" if row["above"] is None else f"{row['below']:.2f} to {row['above']:.2f}"
        cells = [
            row["claim"],
            row["paper"],
            row["published"],
            here,
            *map(interval, (row["over_seeds"], row["over_queries"])),
        ]
        lines.append("| " + " | ".join([*cells, row["says"], str(row["seeds"])]) + " |")
    return lines


def arms_table() -> list[str]:
    lines = ["| arm | " + " | ".join([*MEASURES, "n seeds"]) + " |", "|---" * (2 + len(MEASURES)) + "|"]
    for arm in ARMS:
        found = {name: arm_values("claims", "", arm.name, name) for name in arm.measures}
        values = [mean(map(mean, found[name].values())) if found.get(name) else None for name in MEASURES]
        seeds = len(found[arm.measures[0]])
        lines.append(
            "| " + " | ".join([arm.name, *("" if v is None else f"{v:.2f}" for v in values), str(seeds)]) + " |"
        )
    return lines


def interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:+.2f}, {bounds[1]:+.2f}]"


def write_tables() -> None:
    found = rows()
    VERDICTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    TABLE.write_text("\n".join(table(found)) + "\n", encoding="utf-8")
    commands = dict.fromkeys(row["command"] for row in found)
    parts = [
        HEAD.strip(),
        "\n".join(table(found)),
        NOTES.strip(),
        "## The arms",
        "\n".join(arms_table()),
        "## Commands\n\nWhat is measured already is not measured again.\n\n```sh\n" + "\n".join(commands) + "\n```",
    ]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


HEAD = """
# Claims of papers, in small

Written by `python benchmarks/claims.py table`; every number is in `benchmarks/results/`. What papers say of their parts,
tried with two layers of MiniLM, batches of 32 and 27 to 120 steps on real data. Read the size before the verdict: a claim
that does not hold here may hold at its paper's size, and the other way round.

*published* is the paper's own difference, on its model and benchmarks. *here* goes from the lower side of the claim to the
upper one, in points; *seeds* and *queries* are 95 % intervals of the difference: Student's t over seeds, paired (same
batches), and the paired bootstrap over queries, of the mean over seeds. A claim **holds**, or **does not hold**, where all
intervals that can be had leave out zero on one side; else it is **undecided**. Where no interval over queries stands, only
means were kept, and the verdict is of the seeds alone. With this many rows at 95 %, about one verdict is expected to be
chance.
"""

NOTES = """
## What it says, and how sure

- **Holds, clearly**: a fixed list of sub-models against drawn ones; a student of vectors against a contrastive one among the
  teacher's documents, once it has the rate and the steps (far behind after 40 steps at 1e-4, level after 120, far ahead
  after 120 at 5e-4), and better there than among its own; a loss for graded pairs on STS-B; two stages against one with own
  negatives alone, by means over seeds.
- **Holds, barely**: negatives below 95 % of the positive on StackFAQ, where most of the nearest are answers that nobody
  marked. Over seeds the interval nearly touches zero. On SciFact, where few are, the queries do not decide it.
- **Does not hold**: two stages against one with in-batch negatives. The stage without in-batch negatives has two easy ones
  for each message, and alone it is the weakest arm: here the in-batch negatives are worth more than their false negatives
  cost. That says little of seven mined ones.
- **Mixed**: hardness weights move answers and near negatives apart on SciFact, by a trifle, and together on StackFAQ. In
  ranking neither they nor focal weights are told from plain InfoNCE; the gains published would be too small to be seen with
  three seeds.
- **A trade, not a gain**: the average of three mixtures is between them, about where the middle one is. It gains on STS-B
  what it loses on StackFAQ against the best single model, and its mean is not told from that one's. Slerp and average are
  the same to two decimals: fine-tunes of one model are nearly parallel.
- **A student of vectors is no better by itself**: among documents of its own the contrastive one is far ahead. Test
  questions have answers that training has seen with other questions, which suits contrast.
- **A context is read, and does not pay here**: behind the corpus that is searched a contextual model is two points better
  than behind nothing, as the paper has it. But the same student without a context is better by more: the layers around the
  vectors are new, and 120 steps on 874 questions are few to learn to read them in.
- **Undecided**: training for 4 bits against rounding to them afterwards. Either costs about half a point here; what is
  between them is a tenth.
- **Undecided**: a guide on planted copies, and whether a loss for graded pairs costs retrieval more than a point: seeds
  disagree.

## How to read it

- **Negatives, hardness, focal, guide, sub-models, 40 steps of LEAF** are measured by `mining_quality.py` and `objectives.py`
  ([objectives](objectives.md) has their tables); here they are read from their results.
- **Hardness** is the loss as LLaVE's code has it: weights, and a second direction. The difference is that of both.
- **LEAF** reads the teacher's vectors from a store, as the paper does, so that a step costs what the contrastive one costs.
  It has the same 874 questions and their answers as the contrastive student, and no other texts; the paper trains on
  millions. Both have the same learning rate in a row, 1e-4 or 5e-4, and 120 steps in place of 40.
- **Mixtures** are StackFAQ and STS-B at 1:3, 1:1 and 3:1 of the batches, each with the routed loss, from the same weights.
  The best of them is chosen on the test sets themselves, seed by seed, by the mean of both, which flatters it.
- **Stages**: 20 steps on StackFAQ with in-batch negatives, then 20 of StackFAQ and Banking77 blended, own negatives alone.
  One stage is 40 steps blended. Two hard negatives in all. NV-Embed has seven, LoRA on a 7B model, and 38,000 steps.
- **Contexts** are 32 documents, of the batch in training and of StackFAQ's answers afterwards. Both encoders are the student,
  so the contextual model has twice its weights, and a step takes three times as long. Batches are random, not neighbourhoods.
- **4 bits** are Q4_0 of both layers' matrices; the table of words stays whole. 120 steps at 1e-4, as the contrastive student.
- **A loss for graded pairs**: CoDiEmb's loss for STS-B beside InfoNCE for StackFAQ, against InfoNCE for both, which gets the
  pairs graded 4 and more (it can read no grades). Batches are of one source in both.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="rows, student and weights to merge")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--only", default="", help="names of arms, with commas")
    given = parser.parse_args()
    if given.what == "table":
        return write_tables()
    names = [name for name in given.only.split(",") if name]
    return run(given.work.resolve(), [int(seed) for seed in given.seeds.split(",")], names)


if __name__ == "__main__":
    main()
