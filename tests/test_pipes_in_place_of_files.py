"""A pipe where a file is read: it would be waited for, so it is refused at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError
from minicache_cpp.chat.file import read_chat
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.text.files import Texts, read_text, read_texts


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
@pytest.mark.parametrize(
    "read",
    [
        read_chat,
        read_gguf,
        read_text,
        lambda path: read_texts([path]),
        lambda path: Texts([path]),
        lambda path: MiniCache(plan=path).plan_file,
        Llama,
        lambda path: Llama(path, minicache=MiniCache()),
        lambda path: Llama(path, minicache="f16"),
    ],
)
def test_a_pipe_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MiniCacheError, match="pipe is a pipe or a device; write what it gives to a file"):
        read(tmp_path / "pipe")
