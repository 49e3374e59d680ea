"""Corpora: named domains of tokens, and the sampler that draws mixed batches from them."""
