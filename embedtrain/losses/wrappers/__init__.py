"""Losses made of losses: of another view of the batch, of a part of it, or of several at once.

A wrapper changes the `EmbeddingBatch` that the loss inside it sees, and knows nothing else of that loss.
"""
