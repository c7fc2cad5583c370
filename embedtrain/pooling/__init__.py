"""Hidden states [S, H] of ragged texts -> one vector each, [N, H'], or several. One head per file.

A head reads the tokens inside `tokens.spans` only, which leave instructions out where that is asked. It adds up in fp32
whatever the hidden states are; a head's own weights run under the caller's autocast, like the backbone's.

A head says by attributes what it asks for and what it gives:

    needs_layers      it gets the list of all layers' states, first the embedding's
    needs_router      it gets (last states, routing weights [S, R]) of a mixture of experts
    reads_spans       it gives a row for each span, so it can embed a document chunk by chunk (late chunking)
    reads_last_token  texts end in EOS
    output_dim        H', where it is not the hidden size
    multi_vector      it gives `Embeddings` with offsets: several vectors per text
    search_vectors    (values, role) -> [N, search_dim]: vectors for search by inner product, where the values are none
    as_is             each dimension has a meaning: its vectors are never projected and never scaled to length 1

Parameters named hidden_size, num_layers, num_routes, vocab_size, special_ids, punctuation_ids and lm_head are supplied
by the program.
"""
