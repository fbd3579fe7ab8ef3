"""MiniCache for frameworks that make their llama_cpp.Llama themselves, such as LangChain and LlamaIndex."""

from __future__ import annotations

from typing import Any

# first, because it makes llama_cpp load our library
from ..native import binding  # noqa: F401  # isort: skip
import llama_cpp
import llama_cpp.llama

from .llama import Llama

# llama_cpp's own class, while another one stands in its place
_own: list[type[llama_cpp.Llama]] = []


def install(minicache: Any = "auto", **defaults: Any) -> type[Llama]:
    """Makes every `llama_cpp.Llama` of this process one with MiniCache, and returns its class.

    minicache: as Llama takes it. defaults: other arguments of Llama. Both apply where a caller does not give them.

    A class that somebody has imported by name before, with `from llama_cpp import Llama`, stays what it was. A second
    call replaces the first; uninstall() brings llama_cpp's own class back.
    """

    class Installed(Llama):
        """llama_cpp.Llama, with MiniCache unless its caller says otherwise."""

        def __init__(self, model_path: Any, **given: Any) -> None:
            super().__init__(model_path, **{"minicache": minicache, **defaults, **given})

    if not _own:
        _own.append(llama_cpp.Llama)
    _replace(Installed)
    return Installed


def uninstall() -> None:
    """Brings llama_cpp's own class back."""
    if _own:
        _replace(_own.pop())


def _replace(cls: type[llama_cpp.Llama]) -> None:
    for module in (llama_cpp, llama_cpp.llama):
        vars(module)["Llama"] = cls
