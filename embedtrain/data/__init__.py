"""From files to token batches. Reading order:

sources/       files -> TrainingExample, by column name, with an index of text ids that is checked row by row
mixture.py     several sources and their weights
sampling.py    (seed, step) -> the rows of a global batch; draws.py and spread.py are its two parts
prompts.py     what is put in front of a text
tokenizer.py   texts -> ragged tokens
collate.py     examples -> TokenBatch
loader.py      step -> this rank's token batches, in worker processes
"""
