#!/usr/bin/env python3
"""Print CMake's options for building with CUDA where parts of the toolkit come from Python packages.

    python3 scripts/cuda_toolkit.py FOLDER      one option on a line; links to headers go to FOLDER

A machine with PyTorch has everything that a build with GGML_CUDA needs, but not always in one place: nvcc may come
without cuBLAS, and packages from PyPI lack the names that linkers look for (libcublas.so, not .so.13). A complete
toolkit needs no options but its compiler. Exit code 1, with a message that names it, where a part is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

OK, FAILED = 0, 1
HEADER = "cublas_v2.h"
# what ggml-cuda includes, and what that includes
HEADERS = (HEADER, "cublas.h", "cublas_api.h", "cublasLt.h")
LIBRARIES = {
    "cudart": ("CUDA_CUDART", "nvidia-cuda-runtime"),
    "cublas": ("CUDA_cublas_LIBRARY", "nvidia-cublas"),
    "cublasLt": ("CUDA_cublasLt_LIBRARY", "nvidia-cublas"),
}
LIBRARY_FOLDERS = (
    "lib64",
    "lib",
    "targets/x86_64-linux/lib",
    "lib64/stubs",
    "targets/x86_64-linux/lib/stubs",
)
DRIVER_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64")


class MissingError(Exception):
    """A part of the toolkit was not found."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for links to cuBLAS's headers")
    args = parser.parse_args(argv)
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc was not found: name it in CUDACXX, or add its folder to PATH", file=sys.stderr)
        return FAILED
    try:
        print("\n".join(options(nvcc, args.folder, python_packages(), map(Path, DRIVER_FOLDERS))))
    except MissingError as error:
        print(error, file=sys.stderr)
        return FAILED
    return OK


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def toolkit(nvcc: str) -> Path:
    """The toolkit's folder; nvcc itself may be a script elsewhere."""
    dry_run = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    log = subprocess.run(dry_run, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.*)$", log, re.MULTILINE)
    return (Path(top[1]) if top else Path(nvcc).resolve().parent.parent).resolve()


def has_cublas_headers(top: Path) -> bool:
    return any((top / below / HEADER).is_file() for below in ("include", "targets/x86_64-linux/include"))


def python_packages() -> list[Path]:
    """The folders of NVIDIA's Python packages, each with include and lib in it."""
    return [place for path in sys.path for place in sorted(Path(path).glob("nvidia/*")) if place.is_dir()]


def options(nvcc: str, folder: Path, packages: Sequence[Path], driver_folders: Iterable[Path]) -> list[str]:
    """CMake's options for a build with GGML_CUDA on this machine; MissingError where a part is missing."""
    top = toolkit(nvcc)
    libraries, unnamed = {}, []  # unnamed: options with the paths of libraries that CMake would not find
    for name, (variable, package) in LIBRARIES.items():
        named = library(name, [top], exact=True)
        path = named or library(name, [top, *packages])
        if path is None:
            raise MissingError(
                f"lib{name} is neither in {top} nor among Python's packages: install the whole toolkit, or {package}"
            )
        libraries[name] = path
        if named is None:
            unnamed.append(f"-D{variable}={path}")

    found = [f"-DCMAKE_CUDA_COMPILER={nvcc}", *unnamed]
    if library("cudart_static", [top]) is None:
        found.append("-DCMAKE_CUDA_RUNTIME_LIBRARY=None")  # ggml-cuda links the shared one itself
    if not has_cublas_headers(top):
        found.append(f"-DCMAKE_CUDA_FLAGS=-I{link_headers(folder, packages)}")

    driver = library("cuda", [top], exact=True)
    elsewhere = (place / name for place in driver_folders for name in ("libcuda.so", "libcuda.so.1"))
    if driver is None:
        driver = next((path for path in elsewhere if path.exists()), None)
        found.append(f"-DCUDA_cuda_driver_LIBRARY={driver}" if driver else "-DGGML_CUDA_NO_VMM=ON")
    if unnamed:
        # our library finds them where they are now, even if LD_LIBRARY_PATH does not name these folders
        folders = dict.fromkeys(str(path.parent) for path in libraries.values())
        found.append(f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-rpath,{':'.join(folders)}")
    return found


def library(name: str, places: Iterable[Path], exact: bool = False) -> Path | None:
    """The library in the first of these places that has it; exact: under the name that linkers look for."""
    pattern = re.compile(rf"lib{name}\.(a|so)" if exact else rf"lib{name}\.(a|so)[.\d]*")
    for place in places:
        for below in LIBRARY_FOLDERS:
            names = sorted(
                path for path in (place / below).glob(f"lib{name}.*") if pattern.fullmatch(path.name)
            )
            if names:
                return names[0]
    return None


def link_headers(folder: Path, packages: Sequence[Path]) -> Path:
    """A folder with links to cuBLAS's headers only: the package may hold CUDA headers of another version, too."""
    source = next((one / "include" for one in packages if (one / "include" / HEADER).is_file()), None)
    if source is None:
        raise MissingError(
            f"{HEADER} is neither in the toolkit nor among Python's packages: "
            "install the whole toolkit, or nvidia-cublas"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for header in HEADERS:
        link = folder / header
        link.unlink(missing_ok=True)
        link.symlink_to(source / header)
    return folder.resolve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
