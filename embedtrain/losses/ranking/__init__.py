"""Losses that read grades: scores of (query, document) pairs, classes of texts, or positives against hard negatives.

    by                      losses                                              helpers
    order of all pairs      CoSENT, AnglE                                       pairs
    lists of candidates     RankNet, ListNet, LambdaLoss, PRO, RankKL, Pearson  lists
    classes (labels)        OnlineTriplet, MultiSimilarity                      items, distances
    own hard negatives      Triplet, Contrastive                                pairs, distances

Reading order: pairs (which pairs have a score, how similar they are), cosent (one number for the whole batch), lists (the
frame of all list losses), then any list loss, which is one formula.
"""
