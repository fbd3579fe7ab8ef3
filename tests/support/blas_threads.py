"""One BLAS thread for the oracle, whose matrices are tiny. To be imported before NumPy, which reads it once."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
