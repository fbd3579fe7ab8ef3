#!/usr/bin/env python3
"""Compile the CUDA sources without a GPU: ours for sm_80, sm_90 and sm_120, or the whole ggml-cuda library.

    python3 scripts/compile_cuda.py              our translation units that changed since they were last compiled
    python3 scripts/compile_cuda.py --library    all of ggml-cuda, by CMake; takes 20 minutes or more

    python3 scripts/compile_cuda.py --library --no-flash-attention --architecture 90      the quickest way to link

Needs nvcc, and a native build for upstream's headers: python3 scripts/bootstrap.py setup. Headers of cuBLAS that the
toolkit lacks are fetched from PyPI once. Exit code 0 where everything compiles, and also, with a message, where there
is no nvcc.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bootstrap import FAILED, OK, RELEASE, ROOT, cache_dir, digest
from cuda_toolkit import find_nvcc, has_cublas_headers, toolkit

SOURCES = ROOT / "native" / "ggml_minicache"
ARCHITECTURES = ("80", "90", "120")
# as in upstream's CMakeLists; our own, MINICACHE_CUDA_OPTIONS, follow them
FLAGS = ["-std=c++17", "-O3", "-use_fast_math", "-extended-lambda"]
CUBLAS = "nvidia-cublas"


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    nvcc = find_nvcc()
    if nvcc is None:
        print("CUDA sources: skipped, there is no nvcc")
        return OK
    if args.library:
        return compile_library(nvcc, args.architecture, args.jobs, args.flash_attention)
    tree = args.upstream or next((RELEASE.directory / "build").glob("upstream-*/ggml"), None)
    if tree is None or not (tree / "src" / "ggml-cuda" / "common.cuh").is_file():
        print("CUDA sources: upstream's headers are missing; build first: python3 scripts/bootstrap.py setup")
        return FAILED
    return compile_sources(nvcc, tree, args.architecture, args.jobs)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", action="store_true", help="compile the whole ggml-cuda library")
    parser.add_argument(
        "--no-flash-attention",
        dest="flash_attention",
        action="store_false",
        help="with --library: leave upstream's flash attention kernels empty, which saves most of the time",
    )
    parser.add_argument(
        "--architecture",
        action="append",
        metavar="N",
        help=f"such as 90; may be repeated (default: {', '.join(ARCHITECTURES)})",
    )
    parser.add_argument(
        "--upstream",
        type=Path,
        metavar="DIR",
        help="the ggml folder of the patched tree (default: that of the native build)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    args.architecture = args.architecture or list(ARCHITECTURES)
    return args


def compile_sources(nvcc: str, tree: Path, architectures: Sequence[str], jobs: int) -> int:
    options = re.search(
        r"set\(MINICACHE_CUDA_OPTIONS (.*)\)", (ROOT / "native/cmake/MinicacheSources.cmake").read_text()
    )
    assert options is not None
    includes = [tree / "include", tree / "src", tree / "src" / "ggml-cuda", SOURCES / "op", SOURCES / "cuda"]
    command = [
        nvcc,
        *FLAGS,
        *options[1].split(),
        "-Xcompiler",
        "-fPIC,-Wall,-Wno-pedantic,-Wno-unused-function",
    ]
    for one in architectures:
        command += ["-gencode", f"arch=compute_{one},code=sm_{one}"]
    command += [f"-I{path}" for path in [*includes, *cublas_headers(nvcc)]]

    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    headers = [
        *sorted((tree / "src" / "ggml-cuda").glob("*.cuh")),
        *sorted(SOURCES.glob("op/*.h")),
        *sorted(SOURCES.glob("cuda/*.h")),
        *sorted(SOURCES.glob("cuda/*.cuh")),
    ]
    common = hashlib.sha256("\n".join([version, *command[1:]]).encode())
    for path in headers:
        common.update(path.read_bytes())

    def compile_one(source: Path) -> tuple[Path, float, str | None]:
        key = common.copy()
        key.update(source.read_bytes())
        stamp = cache_dir() / "cuda" / f"{source.stem}-{key.hexdigest()[:16]}"
        if stamp.is_file():
            return source, 0.0, None
        began = time.monotonic()
        done = subprocess.run(
            [*command, "-c", str(source), "-o", os.devnull],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            return source, time.monotonic() - began, done.stdout + done.stderr
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
        return source, time.monotonic() - began, None

    failed = 0
    sources = sorted(SOURCES.glob("cuda/*.cu"), key=lambda path: -path.stat().st_size)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for source, seconds, errors in pool.map(compile_one, sources):
            how = "FAILED" if errors else f"{seconds:.0f} s" if seconds else "as compiled before"
            print(f"  {source.relative_to(ROOT)}: {how}", flush=True)
            failed += errors is not None
            if errors:
                print(errors)
    names = ", ".join(f"sm_{one}" for one in architectures)
    print(f"CUDA sources: {len(sources) - failed} of {len(sources)} compile for {names}")
    return FAILED if failed else OK


def cublas_headers(nvcc: str) -> list[Path]:
    """Folders to include for cuBLAS: none where the toolkit has its headers."""
    if has_cublas_headers(toolkit(nvcc)):
        return []
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    assert release is not None
    major, minor = release.groups()
    package = f"{CUBLAS}=={major}.{minor}.*" if int(major) >= 13 else f"{CUBLAS}-cu{major}"
    target = cache_dir() / "cuda" / f"cublas-{digest(package.encode())[:8]}"
    if not target.is_dir():
        unfinished = target.with_name(f"{target.name}-{os.getpid()}")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(unfinished),
            package,
        ]
        subprocess.run(pip, check=True)
        for library in unfinished.rglob("*.so*"):
            library.unlink()  # half a gigabyte, and nothing is linked here
        unfinished.rename(target)
    return [next(target.rglob("cublas_v2.h")).parent]


def compile_library(nvcc: str, architectures: Sequence[str], jobs: int, flash_attention: bool) -> int:
    # CMake takes no second checkout for a folder that was configured from another
    build = cache_dir() / "build" / f"cuda-library-{digest(str(ROOT).encode())[:8]}"
    options = [
        "-DGGML_CUDA=ON",
        f"-DGGML_CUDA_FA={'ON' if flash_attention else 'OFF'}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(f'{one}-real' for one in architectures)}",
        # ggml-cuda links the shared runtime itself; the static one is not found where some toolkits keep it
        "-DCMAKE_CUDA_RUNTIME_LIBRARY=None",
    ]
    headers = cublas_headers(nvcc)
    if headers:
        # The result is not run: any library will do in place of cuBLAS, and the driver's is left out.
        runtime = next(toolkit(nvcc).rglob("libcudart.so"))
        options += [
            f"-DCMAKE_CUDA_FLAGS=-I{headers[0]}",
            f"-DCUDA_cublas_LIBRARY={runtime}",
            "-DGGML_CUDA_NO_VMM=ON",
        ]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    steps = [
        ["cmake", "-S", str(ROOT / "native"), "-B", str(build), *generator, *options],
        ["cmake", "--build", str(build), "--parallel", str(jobs), "--target", "ggml-cuda"],
    ]
    for step in steps:
        if subprocess.run(step, check=False).returncode != 0:
            return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
