"""How far the logits of the library and of the oracle may be apart, as normalised mean squared errors."""

from __future__ import annotations

# Normalised mean squared errors of all logits. What is left between llama.cpp and the oracle is the f16 sums of
# upstream's attention in the plain layers (1e-6) and, in quantized caches, rows that round the other way after that.
F16_BOUND = 1e-5

QUANTIZED_BOUND = 2e-3

# f16 rounding of the directions and magnitudes beside that of K and V themselves
ROUNDING = 1e-5

# q8_0 of a direction and q8_0 of K and V themselves round differently, and upstream rounds the queries as well
Q8_BOUND = 5e-4

# Where every layer is coded the oracle agrees to about 1e-13, but for coefficients that lie within float32 rounding
# of the middle between two levels: such a one goes one way here and the other way there, and moves by a whole step.
CODE_BOUND = 1e-3

# Beside plain layers, whose f16 sums differ by 1e-6 in upstream's attention, that happens more often.
MIXED_BOUND = 3e-2

# As in test_codes a level at a tie goes one way here and the other way there, and moves what follows by up to so much;
# where none of weight does, the oracle agrees to much less.
TIED_BOUND = 2e-2

UNTIED_BOUND = 1e-6

# A retained token is chosen by comparing distances. Prompts in which two are closer than this are passed over, as
# float32 might decide otherwise than float64.
MARGIN = 1e-4
