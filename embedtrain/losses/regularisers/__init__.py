"""Losses that say how embeddings should lie, whatever they mean: to be added to a loss that says what they mean.

    SpreadOut             random pairs nearly orthogonal          dense, quantisation
    UniformityAlignment   all over the sphere, positives close    dense
    Flops                 few dimensions per text, evenly used    sparse
    Norm                  short vectors, or vectors of one length dense before the norm, sparse

Each is a loss of its own, so that a weighted sum adds any to any, and logs its value beside the others. Each reads the
embedding, or with `view: NAME` another way in which the encoder embeds the same texts. What joins the texts of all ranks
(a square of a mean, a logarithm of one) is computed by every rank in full, and each gives its share.
"""
