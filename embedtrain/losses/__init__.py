"""Losses: functions of an `EmbeddingBatch` that know no model, no ranks and no log.

    EmbeddingBatch --RelationReader: which pairs are no negatives--> contrast: blocks of logits, log-sum-exp, gradients
                   --row formula: a few numbers per row--> loss

Reading order: infonce (what one configures), formulas (what is computed), contrast (how), relation and modifiers (what
enters the denominator), matryoshka (a wrapper). A new softmax loss is a row formula; a new rule about negatives is a tile
modifier; anything else implements `embedtrain.types.Loss`.
"""
