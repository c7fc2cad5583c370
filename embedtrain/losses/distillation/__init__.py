"""Losses that learn from a teacher: another model's embeddings, its scores, or the student's own ensemble.

    vectors          the student's embedding is the teacher's          embedding_match
    relations        the student's texts lie to each other as the      similarity_matrix, relative_triplets
                     teacher's do, in any number of dimensions
    scores           the student ranks a query's documents as the      score_kl, in_batch_kl, margin_mse, successive
                     teacher does
    an ensemble      each view of the student learns from all          self_distillation

A teacher is either a name under `teachers` in the config, whose embeddings come with the batch (`EmbeddingBatch.teacher`),
or the scores in the rows (`Relation.scores`). Reading order: candidates (a query's own documents and who scores them), then
any of the losses. spread tells a teacher whose scores say nothing.
"""
