"""Gives the oracle, whose matrices are tiny, one BLAS thread. NumPy reads the setting when it is imported first."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
