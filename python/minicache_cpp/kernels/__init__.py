"""MiniCache's arithmetic on NumPy arrays, computed by the native code that runs inside llama.cpp.

For tests and for people who study the method; models use it through Llama(..., minicache=MiniCache(...)).
Arrays of heads are [n_tokens, n_head, head_size] throughout, and numbers are float32. Arguments that do not fit each
other, and numbers that are not finite, raise MiniCacheError.
"""

from .arrays import Bytes, Floats
from .attention import Current, Retained, attention
from .codes import ROPES, Codec, Codes, code_attention, decode, encode
from .merging import Merged, merge, restore

__all__ = [
    "ROPES",
    "Bytes",
    "Codec",
    "Codes",
    "Current",
    "Floats",
    "Merged",
    "Retained",
    "attention",
    "code_attention",
    "decode",
    "encode",
    "merge",
    "restore",
]
