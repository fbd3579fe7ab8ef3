"""Whether this processor can run a library, found out before the library is loaded.

Loading one that was built for a newer processor may end the process with SIGILL. So our CPU kernels carry the names of
the instruction sets that they were compiled for, as text in the file (native/ggml_minicache/load/minicache-needs.cpp).
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import sys
from pathlib import Path

MARK = b"minicache-needs:"

# where cpuid and glibc report an instruction set: (leaf, as glibc numbers them; register, as eax to edx; bit)
EAX, EBX, ECX, EDX = range(4)
X86 = {
    "sse3": (0, ECX, 0),
    "ssse3": (0, ECX, 9),
    "fma": (0, ECX, 12),
    "sse4_1": (0, ECX, 19),
    "sse4_2": (0, ECX, 20),
    "movbe": (0, ECX, 22),
    "popcnt": (0, ECX, 23),
    "avx": (0, ECX, 28),
    "f16c": (0, ECX, 29),
    "bmi1": (1, EBX, 3),
    "avx2": (1, EBX, 5),
    "bmi2": (1, EBX, 8),
    "avx512f": (1, EBX, 16),
    "avx512dq": (1, EBX, 17),
    "avx512ifma": (1, EBX, 21),
    "avx512cd": (1, EBX, 28),
    "avx512bw": (1, EBX, 30),
    "avx512vl": (1, EBX, 31),
    "avx512vbmi": (1, ECX, 1),
    "avx512_vbmi2": (1, ECX, 6),
    "gfni": (1, ECX, 8),
    "avx512_vnni": (1, ECX, 11),
    "avx512_bitalg": (1, ECX, 12),
    "avx512_vpopcntdq": (1, ECX, 14),
    "avx512_fp16": (1, EDX, 23),
    "amx_tile": (1, EDX, 24),
    "amx_int8": (1, EDX, 25),
    "lzcnt": (2, ECX, 5),
    "xop": (2, ECX, 11),
    "fma4": (2, ECX, 16),
    "tbm": (2, ECX, 21),
    "avx_vnni": (6, EAX, 4),
    "avx512_bf16": (6, EAX, 5),
}
X86_IN_CPUINFO = {"pni": "sse3", "abm": "lzcnt"}  # where /proc/cpuinfo has other names

# bits of getauxval(): (AT_HWCAP or AT_HWCAP2, bit)
HWCAP, HWCAP2 = 16, 26
ARM64 = {
    "crc32": (HWCAP, 7),
    "atomics": (HWCAP, 8),
    "asimdhp": (HWCAP, 10),
    "asimdrdm": (HWCAP, 12),
    "fcma": (HWCAP, 14),
    "asimddp": (HWCAP, 20),
    "sve": (HWCAP, 22),
    "sve2": (HWCAP2, 1),
    "i8mm": (HWCAP2, 13),
    "bf16": (HWCAP2, 14),
}


def lacking(libraries: list[Path]) -> list[str]:
    """What this processor lacks to run one of `libraries`, any of which would do; empty if it can run one.

    Also empty where a library does not say what it needs, or the system not what the processor has.
    """
    has = features()
    if has is None or not libraries:
        return []
    fewest: list[str] | None = None
    for library in libraries:
        missing = [name for name in needs(library) if name not in has]
        if not missing:
            return []
        if fewest is None or len(missing) < len(fewest):
            fewest = missing
    return fewest or []


def needs(library: Path) -> list[str]:
    """The instruction sets that a library was compiled for; empty if it does not say."""
    _, mark, rest = library.read_bytes().partition(MARK)
    return rest[: rest.find(b"\n")].decode("ascii").split() if mark else []


def features() -> frozenset[str] | None:
    """The instruction sets of the tables above that the processor and the system have; None where nobody says."""
    if not sys.platform.startswith("linux"):
        return None
    if platform.machine() == "x86_64":
        return _features_by_glibc() or _features_by_cpuinfo()
    return _features_by_getauxval() if platform.machine() == "aarch64" else None


def _features_by_glibc() -> frozenset[str] | None:
    """From glibc 2.33 or later. It has asked the processor itself, which may be one that an emulator plays."""
    get_leaf = getattr(ctypes.CDLL(None), "__x86_get_cpuid_feature_leaf", None)
    if get_leaf is None:
        return None
    # four registers with what the processor has, then four with what can be used
    get_leaf.restype = ctypes.POINTER(ctypes.c_uint32 * 8)
    found = set()
    for name, (leaf, register, bit) in X86.items():
        if get_leaf(leaf).contents[4 + register] >> bit & 1:
            found.add(name)
    return frozenset(found)


def _features_by_cpuinfo() -> frozenset[str] | None:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^flags\s*:(.*)$", text, re.MULTILINE):
            return frozenset(X86_IN_CPUINFO.get(name, name) for name in match[1].split())
    return None


def _features_by_getauxval() -> frozenset[str] | None:
    getauxval = getattr(ctypes.CDLL(None), "getauxval", None)
    if getauxval is None:
        return None
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = [ctypes.c_ulong]
    return frozenset(name for name, (word, bit) in ARM64.items() if getauxval(word) >> bit & 1)
