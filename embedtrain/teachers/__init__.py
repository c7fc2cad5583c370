"""Teachers: models whose embeddings of the same texts a loss learns from.

    online    a frozen model beside the student: its own tokenizer in the loader's workers, its own forward pass in the step
    cached    vectors that `embedtrain teach` has written to a store on disk; nothing is encoded while training
    joined    several of these as one, their vectors side by side
    fill      writes it: shards of vectors under sorted keys (`embedtrain.store`)

A teacher works in two halves (`embedtrain.types.Teacher`): `prepare` in a worker process, `embed` in the step. Neither its
weights nor its state are the run's: no optimizer sees them, no checkpoint holds them, no worker gets them.
"""
