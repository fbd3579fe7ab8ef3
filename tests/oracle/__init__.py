"""An independent NumPy account of MiniCache, written from the formulas and from nothing else.

`quant` rounds as ggml's storage types do, `arithmetic` merges, restores and attends, `code` does so with shared codes,
and `model` runs whole Llama-like models with the cache simulated cell by cell. Everything is float64 except where the
real thing stores a number.
"""
