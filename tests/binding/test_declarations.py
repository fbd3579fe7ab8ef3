"""The declarations given to cffi are those of the header."""

from __future__ import annotations

import re

import pytest

from minicache_cpp.native.declarations import DECLARATIONS
from support.paths import ROOT

HEADER = ROOT / "native" / "ggml_minicache" / "llama" / "llama-minicache.h"


@pytest.mark.skipif(not HEADER.exists(), reason="the header is only in the source checkout")
def test_the_declarations_are_the_headers() -> None:
    def words(text: str) -> str:
        return "".join(re.sub(r"//.*", "", text).replace("LLAMA_API", "").split())

    header = words(HEADER.read_text())
    for declaration in re.split(r"(?<=;)\n+(?=\S)", DECLARATIONS.strip()):
        assert words(declaration) in header
    functions = re.findall(r"LLAMA_API [^;{]*?(llama_minicache_\w+)\(", HEADER.read_text())
    missing = {name for name in functions if f"{name}(" not in DECLARATIONS}
    assert missing <= {"llama_minicache_init_from_model"}  # cffi cannot pass llama.h's structs by value
