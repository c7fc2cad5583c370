"""The reading order of the pages. A new option belongs into one of these families: at the place where a reader looks for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    title: str
    about: str
    options: tuple[str, ...]
    parts: str | None = None  # a package of parts for InfoNCE that belong here


LOSSES = (
    Family(
        "Contrastive",
        "A positive is told from the negatives of the batch, which nobody has to name.",
        ("infonce", "symmetric", "gte", "decoupled", "sigmoid"),
    ),
    Family(
        "Modifiers of negatives",
        "Parts that stand inside a contrastive loss, under `modifiers`, by any name. They take negatives out of the denominator "
        "or weigh them. First all filters act, then what picks among those left, then weights.",
        ("qwen3", "gist", "cde", "unime", "lusifer", "hardness_weighted"),
        parts="modifiers",
    ),
    Family(
        "Further negatives",
        "Parts that stand inside InfoNCE, under `extra`, by any name. They add documents that no row of the batch brought.",
        ("cross_batch_memory", "kalm_v2"),
        parts="extra",
    ),
    Family(
        "Wrappers",
        "Losses made of losses. What is inside is chosen like any option (`loss@loss.inner=gist`), and again inside that.",
        (
            "weighted_sum",
            "f2llm",
            "insent",
            "routed",
            "matryoshka",
            "starbucks",
            "matryoshka_2d",
            "adaptive_layers",
            "view",
            "graded_positives",
            "training_head",
            "residual",
        ),
    ),
    Family(
        "Distillation",
        "A teacher's scores or vectors say what to learn. Scores stand in the rows; vectors come from a model under `teachers`.",
        (
            "score_kl",
            "e5_distillation",
            "unime_v2",
            "in_batch_kl",
            "margin_mse",
            "m3_kd",
            "embedding_match",
            "leaf",
            "similarity_matrix",
            "relative_triplets",
            "stella",
            "embedding_gemma",
        ),
    ),
    Family(
        "Graded pairs and ranking",
        "Rows bring scores: how similar two texts are (STS), or how relevant each candidate of a query is.",
        (
            "cosent",
            "angle",
            "pearson",
            "rank_kl",
            "pro",
            "codiemb",
            "ranknet",
            "e2rank",
            "lambda_loss",
            "listnet",
        ),
    ),
    Family(
        "Pairs and triplets",
        "A row's own positives and hard negatives, without the rest of the batch.",
        ("triplet", "contrastive"),
    ),
    Family(
        "By class",
        "Rows bring a label. A batch must hold several texts of a class: `texts_per_label` of the source.",
        ("class_masked", "online_triplet", "multi_similarity"),
    ),
    Family(
        "Regularisers",
        "They say how embeddings should lie, whatever they mean. Add them to a loss: "
        "`loss=weighted_sum '+loss@loss.losses.spread=spread_out'`.",
        ("spread_out", "uniformity_alignment", "norm", "flops"),
    ),
    Family(
        "Token vectors, sparse vectors, Gaussians",
        "Losses for encoders that make something else than one dense vector, or several things at once.",
        ("colbert", "token_groups", "splade", "self_distillation", "bge_m3", "gaussian"),
    ),
)

OBJECTIVES = Family(
    "Token objectives",
    "They read token states. In place of a loss: `objective=retromae loss=null`, alone or as a stage before contrast. Or added "
    "to a loss in every step, by any name and with a weight: `+objective@auxiliary.words.objective=masked_lm "
    "auxiliary.words.weight=0.1`; that costs what the objective costs alone.",
    ("causal_lm", "masked_lm", "mntp", "retromae", "smae", "reconstruction", "translation", "bridge_alignment"),
)

POOLINGS = (
    Family(
        "One vector from the token states",
        "Without weights of their own.",
        ("mean", "cls", "eos", "max", "weighted_mean"),
    ),
    Family(
        "Other layers",
        "They read the states of inner layers, or of the routers, too.",
        ("first_last", "layer_average", "moe_router"),
    ),
    Family(
        "Learned heads",
        "With weights that train from the first step: `optim.head_learning_rate`.",
        ("latent_attention", "multi_layer", "projected"),
    ),
    Family(
        "Token vectors, sparse vectors, Gaussians",
        "Not one dense vector. Each has losses made for it.",
        ("multi_vector", "bge_m3_multi_vector", "learned_tokens", "splade", "bge_m3_sparse", "gaussian"),
    ),
)
