"""What PyInstaller cannot see: the native libraries, plans and texts, modules that are imported late, and versions."""

# PyInstaller runs this file, and nobody else needs it
from PyInstaller.utils.hooks import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
)

binaries = collect_dynamic_libs("minicache_cpp")
datas = [
    *collect_data_files("minicache_cpp"),
    # the versions are compared, so that llama_cpp and the libraries belong together
    *copy_metadata("llama-cpp-python"),
    *copy_metadata("minicache-cpp"),
]
hiddenimports = collect_submodules("minicache_cpp")
