"""Which libllama this process uses.

llama_cpp loads its native library while it is imported, from the directory in LLAMA_CPP_LIB_PATH. So that variable is
set to our directory before the first import, and afterwards it is checked what was loaded: two llama libraries in one
process, or our libllama over another ggml, would crash later and elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from ..host.output import tell
from ..host.paths import user_path
from ..host.threads import cpu_name
from . import processor

LLAMA_CPP_VERSION = "0.3.36"
OVERRIDE = "MINICACHE_LIB_PATH"
# where an installed package has its native libraries
INSTALLED = Path(__file__).parent.parent / "lib"
SUFFIXES = (".so", ".dylib", ".dll")
MARK = "llama_minicache_get_report"  # a function that only our libllama has
# ggml's own variable: a library with a backend that ours was not built with
MORE_DEVICES = "GGML_BACKEND_PATH"

OTHER_GGML = (
    "import minicache_cpp before other packages that bring a ggml of their own, and keep the directories of other "
    "llama.cpp builds out of LD_LIBRARY_PATH"
)
INSTALL_LLAMA_CPP = f"CMAKE_ARGS=-DLLAMA_BUILD=OFF pip install llama-cpp-python=={LLAMA_CPP_VERSION}"


def file_names(base: str) -> list[str]:
    """The file names of a shared library, as llama_cpp looks for them."""
    if sys.platform == "win32":
        return [f"{base}.dll", f"lib{base}.dll"]
    return [f"lib{base}.so", f"lib{base}.dylib"] if sys.platform == "darwin" else [f"lib{base}.so"]


def find(directory: Path, base: str) -> Path | None:
    return next((directory / name for name in file_names(base) if (directory / name).exists()), None)


def library_dir() -> Path | None:
    """The directory of our native libraries; None where they were not built."""
    override = os.environ.get(OVERRIDE)
    directory = user_path(override) if override else INSTALLED
    return directory.resolve() if find(directory, "llama") else None


def prepare() -> None:
    """Makes a later `import llama_cpp` load our library.

    Raises ImportError where another one is loaded already, or where llama_cpp asks for ours and there is none.
    """
    if "llama_cpp.llama_cpp" in sys.modules:
        use_mtmd(check_llama(sys.modules["llama_cpp.llama_cpp"]).parent)
    elif directory := library_dir():
        use(directory)
    elif "llama_cpp" in sys.modules:  # it is being imported, and would say less
        raise ImportError(missing_library())


@functools.cache
def load() -> Path:
    """Imports llama_cpp over our library, checks what was loaded, and returns the path of libllama."""
    check_version()
    if "llama_cpp.llama_cpp" not in sys.modules:
        directory = library_dir()
        if directory is None:
            raise ImportError(missing_library())
        use(directory)
    try:
        import llama_cpp
        from llama_cpp import llama_cpp as bindings
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise
        raise ImportError(f"llama_cpp is missing; install it with {INSTALL_LLAMA_CPP}") from None
    except (RuntimeError, OSError) as error:
        # usually because the loader found the ggml of another build, in the process or in LD_LIBRARY_PATH
        raise ImportError(f"{error}; {OTHER_GGML}") from error
    if llama_cpp.__version__ != LLAMA_CPP_VERSION:
        raise ImportError(wrong_version(llama_cpp.__version__))
    path = check_llama(bindings)
    check_ggml(bindings._lib, path)
    load_backends(path.parent)
    return path


def use(directory: Path) -> None:
    """Makes llama_cpp load our libraries when it is imported; raises ImportError where they cannot run here."""
    check_processor(directory)
    os.environ["LLAMA_CPP_LIB_PATH"] = str(directory)
    use_mtmd(directory)
    # llama_cpp._ggml would load the libggml in llama_cpp's own directory, which is another one or does not exist
    module = types.ModuleType("llama_cpp._ggml", "The libggml of minicache_cpp, loaded on first use.")

    def load_ggml(name: str) -> object:
        path = find(directory, "ggml")
        if name != "libggml" or path is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return ctypes.CDLL(str(path))

    vars(module).update(libggml_base_path=directory, __getattr__=load_ggml)
    sys.modules.setdefault(module.__name__, module)


def use_mtmd(directory: Path) -> None:
    # where llama_cpp.mtmd_cpp looks for libmtmd when it is imported; another one would bring another libllama
    os.environ["MTMD_CPP_LIB"] = str(directory)


@functools.cache
def check_processor(directory: Path) -> None:
    """Raises ImportError where the CPU kernels would end the process, as they were built for a newer processor."""
    # one library, or one for each kind of processor (GGML_CPU_ALL_VARIANTS)
    kernels = sorted(path for path in directory.glob("*ggml-cpu*") if path.suffix in SUFFIXES)
    if missing := processor.lacking(kernels):
        raise ImportError(
            f"the libraries in {directory} were built for a processor that has {', '.join(missing)}, "
            f"which this one ({cpu_name()}) lacks; build them on this machine (pip install --no-cache-dir .), "
            "or use a wheel for all processors (docs/wheels.md)"
        )


def check_version() -> None:
    # before the import, because the ctypes declarations of another version may not even load over our library
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return
    if version != LLAMA_CPP_VERSION:
        raise ImportError(wrong_version(version))


def check_llama(bindings: types.ModuleType) -> Path:
    """The path of the libllama that llama_cpp loaded. Raises ImportError where it is not ours."""
    path = Path(bindings._lib._name)
    if hasattr(bindings._lib, MARK):
        return path.resolve()
    ours = library_dir()
    if ours == path.parent.resolve():
        raise ImportError(f"{path} was built without MiniCache; build it with MINICACHE_PATCH on")
    advice = "import minicache_cpp before anything that imports llama_cpp"
    if ours:
        advice += f", or start the program with LLAMA_CPP_LIB_PATH={ours}"
    raise ImportError(f"llama_cpp was imported earlier and loaded {path}, which has no MiniCache; {advice}")


def check_ggml(library: ctypes.CDLL, llama: Path) -> None:
    """Raises ImportError where libllama runs over another ggml: the loader takes one that is in the process already."""
    ggml = path_of(library.ggml_time_us)
    if ggml and ggml.parent != llama.parent:
        raise ImportError(f"{llama} was bound to {ggml}; {OTHER_GGML}")


def load_backends(directory: Path) -> None:
    """Loads ggml's backends where they are libraries of their own (GGML_BACKEND_DL); for the CPU the best that fits.

    GGML_BACKEND_PATH adds one more, as in llama.cpp's programs.
    """
    path = find(directory, "ggml")
    if path is None:
        return
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    if ggml.ggml_backend_reg_count() == 0:
        with errors_only(ggml):
            ggml.ggml_backend_load_all_from_path(os.fsencode(directory))  # and MORE_DEVICES
    elif more := os.environ.get(MORE_DEVICES):
        ggml.ggml_backend_load.restype = ctypes.c_void_p
        if not ggml.ggml_backend_load(os.fsencode(more)):
            raise ImportError(
                f"{MORE_DEVICES} is {more}, which is no backend for this ggml; correct or unset it"
            )
    if ggml.ggml_backend_reg_count() == 0:
        raise ImportError(
            f"{directory} has no library of ggml that runs on this machine; build it again here"
        )


@contextlib.contextmanager
def errors_only(ggml: ctypes.CDLL) -> Iterator[None]:
    """Inside, ggml's log is silent but for errors. It would tell on stderr which libraries it loads."""
    callback, data = ctypes.c_void_p(), ctypes.c_void_p()
    ggml.ggml_log_get(ctypes.byref(callback), ctypes.byref(data))
    ggml.ggml_log_set(PRINT_ERROR, None)
    try:
        yield
    finally:
        ggml.ggml_log_set(callback, data)


LOG_ERROR = 4  # of enum ggml_log_level


def print_error(level: int, text: bytes, _: object) -> None:
    if level == LOG_ERROR:
        tell(text.decode("utf-8", "replace"), end="")


# ggml keeps a pointer to it
PRINT_ERROR = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(print_error)


class DlInfo(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def path_of(function: object) -> Path | None:
    """The file that a native function lies in; None where the system cannot tell."""
    if sys.platform == "win32":
        return None
    dladdr = getattr(ctypes.CDLL(None), "dladdr", None)
    info = DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)  # type: ignore[arg-type]
    if dladdr is None or not dladdr(address, ctypes.byref(info)) or not info.file:
        return None
    return Path(os.fsdecode(info.file)).resolve()


def missing_library() -> str:
    override = os.environ.get(OVERRIDE)
    if override:
        library = file_names("llama")[0]
        return f"{OVERRIDE} is {override}, which holds no {library}; build it there, or unset {OVERRIDE}"
    return (
        f"minicache_cpp was installed without its native library ({INSTALLED}); "
        f"install it again with pip install ., or name a build directory in {OVERRIDE}"
    )


def wrong_version(version: str) -> str:
    return (
        f"minicache_cpp needs llama-cpp-python {LLAMA_CPP_VERSION}, whose structs match its native library, "
        f"and found {version}; run {INSTALL_LLAMA_CPP}"
    )
