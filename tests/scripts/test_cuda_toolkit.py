"""scripts/cuda_toolkit.py: CMake options for complete toolkits, and for parts that come as Python packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cuda_toolkit

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="scripts/gpu_check.sh needs Linux"
)

HEADERS = ("cublas.h", "cublas_api.h", "cublas_v2.h", "cublasLt.h")


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A toolkit that has only nvcc."""
    top = tmp_path / "cuda"
    nvcc = top / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho '#$ TOP={top}/bin/..' >&2\n")
    nvcc.chmod(0o755)
    return top


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    """PyTorch's packages, whose libraries lack the names that linkers look for."""
    folder = tmp_path / "site" / "nvidia" / "cu13"
    put(folder / "lib", "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcublas_other.so.13")
    put(folder / "include", "cuda_runtime.h", *HEADERS)
    return [folder]


def told(top: Path, packages: list[Path], drivers: list[Path]) -> dict[str, str]:
    found = cuda_toolkit.options(str(top / "bin" / "nvcc"), top.parent / "headers", packages, drivers)
    pairs = [one.removeprefix("-D").split("=", 1) for one in found]
    return {name: value for name, value in pairs if name != "CMAKE_CUDA_COMPILER"}


@pytest.mark.parametrize("below", ["lib64", "targets/x86_64-linux/lib"])
def test_a_whole_toolkit_needs_nothing(top: Path, packages: list[Path], below: str) -> None:
    put(
        top / below,
        "libcudart.so",
        "libcudart_static.a",
        "libcublas.so",
        "libcublasLt.so",
        "stubs/libcuda.so",
    )
    put(top / "include", *HEADERS)
    assert told(top, packages, []) == {}
    assert not (top.parent / "headers").exists()


def test_all_of_it_among_pythons_packages(top: Path, packages: list[Path]) -> None:
    lib = packages[0] / "lib"
    headers = top.parent / "headers"
    assert told(top, packages, []) == {
        "CUDA_CUDART": f"{lib}/libcudart.so.13",
        "CMAKE_CUDA_RUNTIME_LIBRARY": "None",
        "CUDA_cublas_LIBRARY": f"{lib}/libcublas.so.13",
        "CUDA_cublasLt_LIBRARY": f"{lib}/libcublasLt.so.13",
        "CMAKE_CUDA_FLAGS": f"-I{headers}",
        "GGML_CUDA_NO_VMM": "ON",
        "CMAKE_SHARED_LINKER_FLAGS": f"-Wl,-rpath,{lib}",
    }
    assert sorted(path.name for path in headers.iterdir()) == sorted(HEADERS)
    told(top, packages, [])  # links that exist are made again


def test_nvcc_itself_is_one_of_pythons_packages(top: Path, packages: list[Path]) -> None:
    """Its folder contains the libraries, under names that CMake does not find."""
    put(top / "lib", "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13")
    put(top / "include", *HEADERS)
    found = told(top, [top, *packages], [])
    lib = top / "lib"
    assert found["CUDA_CUDART"] == f"{lib}/libcudart.so.13"
    assert found["CUDA_cublas_LIBRARY"] == f"{lib}/libcublas.so.13"
    assert found["CUDA_cublasLt_LIBRARY"] == f"{lib}/libcublasLt.so.13"
    assert found["CMAKE_SHARED_LINKER_FLAGS"] == f"-Wl,-rpath,{lib}"
    assert "CMAKE_CUDA_FLAGS" not in found


def test_the_driver_of_the_machine(top: Path, packages: list[Path], tmp_path: Path) -> None:
    put(top / "lib64", "libcudart.so", "libcudart_static.a", "libcublas.so", "libcublasLt.so")
    put(top / "include", *HEADERS)
    driver = tmp_path / "driver"
    put(driver, "libcuda.so.1")
    assert told(top, packages, [tmp_path, driver]) == {"CUDA_cuda_driver_LIBRARY": f"{driver}/libcuda.so.1"}


@pytest.mark.parametrize("part", ["cudart", "cublas", "cublasLt", "headers"])
def test_a_part_that_is_nowhere_is_named(top: Path, packages: list[Path], part: str) -> None:
    if part == "headers":
        (packages[0] / "include" / "cublas_v2.h").unlink()
    else:
        (packages[0] / "lib" / f"lib{part}.so.13").unlink()
    name = "cublas_v2.h" if part == "headers" else f"lib{part}"
    with pytest.raises(
        cuda_toolkit.MissingError, match=rf"{name} is neither .* the whole toolkit, or nvidia-"
    ):
        told(top, packages, [])


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_toolkit, "find_nvcc", lambda: None)
    assert cuda_toolkit.main([str(tmp_path)]) == 1
    assert "nvcc was not found" in capsys.readouterr().err
