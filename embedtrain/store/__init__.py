"""Vectors on disk by the identity of their texts: written in shards, found by binary search, read through memory maps.

    store/manifest.json                         whose vectors they are: identity of the model, dimensions, numbers
    store/shard-<hash of keys>.safetensors      keys     [n] int64, ascending: role, prompt and text (`text_keys`)
                                                vectors  [n, E] float16 or float32, in the order of the keys

A file is written under another name, flushed to the disk and then renamed: a kill at any moment leaves whole shards, and at
most some `*.unfinished` that nobody reads. Names come from the keys, so several ranks, and several runs, may add to one store.

A store holds the vectors of one model. A *root* holds a store for each model that was ever asked, in folders named by the
digest of its identity (`store_folder`): changed weights never meet old vectors, and equal weights always find theirs.

    keys       what a text is called
    manifest   whose vectors a store holds
    shards     one file: written whole, mapped into memory
    reader     VectorStore: where is this text, and what is its vector
    writer     StoreWriter: adds vectors, shard by shard
"""
