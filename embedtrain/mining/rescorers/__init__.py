"""Rescorers: a stronger model's opinion of candidates and positives.

cross_encoder.py   reads query and document together: the best judge there is, one forward pass per pair
bi_encoder.py      a stronger embedding model: one forward pass per text
pair_store.py      scores of pairs on disk, so that no pair is judged twice
"""
