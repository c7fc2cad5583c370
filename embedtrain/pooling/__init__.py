"""Hidden states [S, H] of ragged texts -> one vector each, [N, H]. One head per file.

A head reads the tokens inside `tokens.spans` only, which leave instructions out where that is asked. It computes in fp32
whatever the hidden states are. A head with `needs_layers` gets the list of all layers' states (first the embedding's).
"""
