"""Ragged tokens -> hidden states [S, H].

transformer.py        TransformerBackbone: any transformers model by name; start here
loading.py            reading a model, and saying what a folder lacks     locate.py  models inside Python packages
alibi_bert.py         BERT without positions (JinaBERT)  own_models.py  where transformers finds it
published/            models whose code is their own, expressed by transformers; adapters
ragged.py             where texts lie in the flat run; what a query may see
positions.py          where position ids start, and how many there are
position_bias.py      what is added to scores by position alone
soft_mask.py          a mask of the future that opens as training goes on
attention.py          the attention that transformers calls for us, and which kernel it picks
grouped_attention.py  the kernel on a CPU                padded_attention.py  the fallback on accelerators
padded.py             the adapter for models that have no ragged path
parity.py             proves ragged == padded            direction.py  proves causal or bidirectional
lm_head.py            logits over the vocabulary, for token objectives and sparse embeddings
final_norm.py         an inner layer as if the last  facts.py  what a pooling head is told
contextual.py         two encoders: one reads texts behind vectors that the other made of documents of the corpus
bridge.py             two models in a row: an encoder that reads words, a language model that reads its states
routing.py            what a mixture of experts sends a token to
lora.py               adapters, and the merged model for export
quantise.py           weights that are rounded wherever they are used
random_bits.py        dropout masks at a third of the price
"""
