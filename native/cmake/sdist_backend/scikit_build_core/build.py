"""Stands in for llama-cpp-python's build backend while pip downloads the source distribution.

pip wants the metadata of what it downloads, and would install and run the real backend for that. A download needs
nothing but the name and the version.
"""

from __future__ import annotations

import os
from typing import Any


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    version = os.environ["MINICACHE_SDIST_VERSION"]
    dist_info = f"llama_cpp_python-{version}.dist-info"
    os.makedirs(os.path.join(metadata_directory, dist_info))
    with open(os.path.join(metadata_directory, dist_info, "METADATA"), "w", encoding="utf-8") as file:
        file.write(f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {version}\n")
    return dist_info


def build_wheel(*arguments: Any, **options: Any) -> str:
    raise RuntimeError("this backend only serves a download")
