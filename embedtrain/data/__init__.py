"""From files to token batches. Reading order:

sources/       files -> TrainingExample, by column name; stdlib.py: pairs that every machine has
index.py       one pass over all rows: checks each, and keeps the ids of its texts
mixture.py     several sources and their shares
sampling.py    (seed, step) -> the rows of a global batch
draws.py       which positives and hard negatives a row brings at a visit
spread.py      rows into batches so that no text is in a batch twice
grouping.py    rows into batches of P classes with K rows each
prompts.py     what is put in front of a text
tokenizer.py   texts -> ragged tokens
collate.py     examples -> TokenBatch
loader.py      step -> this rank's token batches, in worker processes
lengths.py     whether texts can be cut where their sources say
chunking.py    length-sorted chunks under a token budget
splits.py      which rows of a file are held out
describe.py    what an epoch holds, as a table
outlook.py     what it will hold, before the rows are read
"""
