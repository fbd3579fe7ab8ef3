"""Bounds for the normalised mean squared error of all logits, of the library against the oracle."""

from __future__ import annotations

# What remains between llama.cpp and the oracle are the f16 sums of upstream's attention in the plain layers (1e-6)
# and, in quantized caches, rows that round to another level because of them.
F16_BOUND = 1e-5

QUANTIZED_BOUND = 2e-3

# Directions and magnitudes are rounded to f16, and so are K and V themselves in the cache they are compared with.
ROUNDING = 1e-5

# A direction in q8_0 is rounded differently from K and V in q8_0, and upstream rounds the queries as well.
Q8_BOUND = 5e-4

# Where every layer is coded, the oracle agrees to about 1e-13, except for coefficients that lie within float32
# rounding of the middle between two levels: the library may take one level and the oracle the other. The same goes
# for two scales of a token that lose equally much, and then many of its levels differ: 2e-3 has been seen.
CODE_BOUND = 4e-3

# Beside plain layers, whose f16 sums differ by 1e-6 in upstream's attention, this happens more often.
MIXED_BOUND = 3e-2

# Where a level is at a tie, the library and the oracle may differ, and what follows moves by up to TIED_BOUND.
# Where no level of weight is at a tie, they agree to within UNTIED_BOUND.
TIED_BOUND = 2e-2

UNTIED_BOUND = 1e-6

# Retained tokens are chosen by comparing distances. Prompts in which two distances differ by less than this are
# skipped, because float32 might choose another token than float64.
MARGIN = 1e-4
# The same for a device, whose queries are f16: its distances differ from the oracle's by up to this much.
MARGIN_ON_A_DEVICE = 1.5e-3
