"""Ragged tokens -> hidden states [S, H].

transformer.py        TransformerBackbone: any transformers model by name, start here
ragged.py             where texts lie in the flat run; what a query may see
attention.py          the attention that transformers calls for us, and which kernel it picks
grouped_attention.py  the CPU kernel     padded_attention.py  the fallback on accelerators
padded.py             the adapter for models that have no ragged path
direction.py          proves that attention is causal or bidirectional   parity.py  proves ragged == padded
lora.py               adapters, and the merged model for export
random_bits.py        dropout masks at a third of the price
"""
