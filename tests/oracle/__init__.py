"""An independent implementation of MiniCache in NumPy, written from the formulas alone.

`quant` rounds as ggml's storage types do; `arithmetic` merges, restores and attends; `code` does so with shared codes;
`cells` follows llama.cpp's cache cells; and `model` runs whole Llama-like models with a cache simulated cell by cell.
Everything is float64 except where the library stores a number.
"""
