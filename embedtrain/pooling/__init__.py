"""Hidden states [S, H] of ragged texts -> one vector each, [N, H]. One head per file.

A head reads the tokens inside `tokens.spans` only, which leave instructions out where that is asked. It adds up in fp32
whatever the hidden states are; a head's own weights run under the caller's autocast, like the backbone's. A head with
`needs_layers` gets the list of all layers' states (first the embedding's); one with `reads_last_token` has texts end in EOS.
"""
