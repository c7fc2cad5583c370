"""Searches: the nearest documents of each query.

    exact.py     every document against every query, within a memory cap: the default, and what the others are measured by
    faiss.py     indexes of faiss: flat, inverted lists, HNSW graph, product quantisation; for corpora beyond a few million
    bm25.py      words in common, no model
    hybrid.py    several of them, fused by rank

    nearest.py   the exact pass over the documents        plan.py   its sizes under the cap
    pairs.py     the score of given pairs

A score of two vectors is one number everywhere: their inner product, computed in fp64 and rounded once (`pairs.py`). So
candidates and positives compare exactly, whoever found them, in blocks of whatever shape and on however many ranks.
"""
