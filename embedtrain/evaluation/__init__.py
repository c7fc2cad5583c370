"""Evaluation: what a model can do, before and after.

    RetrievalData  --encode, top_k, merge over ranks-->  ranking  --ir_measures-->  EvaluationResult
    SimilarityData --encode-->  cosine  --Spearman, Pearson-->  EvaluationResult
    EvaluationResult before, after  --paired bootstrap-->  Difference  -->  table on the terminal, report.html

An evaluator is called with an encoder on every rank, divides the work, and gives every rank the same result.
"""
