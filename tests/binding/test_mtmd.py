"""llama_cpp's handlers for vision models find our libmtmd, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from minicache_cpp import Llama
from llama_cpp.llama_chat_format import Llava15ChatHandler
import llama_cpp.mtmd_cpp
print(llama_cpp.mtmd_cpp._libmtmd._name)
llm = Llama(sys.argv[1], n_ctx=64, verbose=False, chat_handler=Llava15ChatHandler(sys.argv[2], verbose=False))
image = {"type": "image_url", "image_url": "data:image/png;base64,AA=="}
try:
    llm.create_chat_completion([{"role": "user", "content": [image]}])
except ValueError as error:
    print(error)
libraries = [line.split()[-1] for line in open("/proc/self/maps") if "/lib" in line] if sys.platform == "linux" else []
print(len({path for path in libraries if path.endswith("libllama.so")}) in (0, 1))
"""


def test_a_vision_handler_gets_as_far_as_the_projector(tools_dir: Path, model: Path, tmp_path: Path) -> None:
    """Its library is loaded over our libllama, reads the projector's file and finds that it is none."""
    projector = tmp_path / "mmproj.gguf"
    projector.write_bytes(b"no projector")
    environment = {**os.environ, "MINICACHE_LIB_PATH": str(tools_dir)}
    command = [sys.executable, "-c", PROGRAM, str(model), str(projector)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    path, error, one_llama = done.stdout.splitlines()
    assert Path(path).parent == tools_dir
    assert error == f"Failed to load mtmd context from: {projector}"
    assert one_llama == "True"


@pytest.mark.parametrize("first", ["minicache_cpp", "llama_cpp"])
def test_without_ours_no_other_is_taken(library_dir: Path, first: str) -> None:
    """Another libmtmd would bring another libllama into the process."""
    program = f"import {first}, minicache_cpp, os; print(os.environ['MTMD_CPP_LIB'])"
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(library_dir)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.stdout, done.stderr) == (f"{library_dir}\n", "")
