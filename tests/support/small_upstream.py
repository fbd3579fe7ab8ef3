"""A small upstream: a source distribution that contains a tiny llama.cpp, and patches for it."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from support.paths import ROOT

CMAKE = ROOT / "native" / "cmake"
COUNTING = "".join(f"line {number}\n" for number in range(1, 41))

ONE = """\
The first hook.

diff --git a/src/counting.txt b/src/counting.txt
--- a/src/counting.txt
+++ b/src/counting.txt
@@ -2,7 +2,8 @@ line 1
 line 2
 line 3
 line 4
-line 5
+line five
+line five and a half
 line 6
 line 7
 line 8
@@ -29,6 +30,7 @@ line 28
 line 29
 line 30
 line 31
+line 31 and a half
 line 32
 line 33
 line 34
"""

TWO = """\
diff --git a/src/counting.txt b/src/counting.txt
--- a/src/counting.txt
+++ b/src/counting.txt
@@ -3,7 +3,7 @@ line 2
 line 3
 line 4
 line five
-line five and a half
+line 5.5
 line 6
 line 7
 line 8
diff --git a/src/new/added.txt b/src/new/added.txt
new file mode 100644
--- /dev/null
+++ b/src/new/added.txt
@@ -0,0 +1 @@
+added
"""


class Upstream:
    """The archive of a small upstream, the directory that it is unpacked to, and the directory of its patches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.archive = directory / "llama_cpp_python-9.9.9.tar.gz"
        self.tree = directory / "tree"
        self.patches = directory / "patches"
        self.patches.mkdir()
        self.pack(COUNTING)

    def pack(self, counting: str) -> None:
        source = self.directory / "llama_cpp_python-9.9.9"
        files = {
            "setup.py": "raise SystemExit('never run')\n",
            "vendor/llama.cpp/CMakeLists.txt": "",
            "vendor/llama.cpp/src/counting.txt": counting,
            "vendor/llama.cpp/src/other.txt": "other\n",
        }
        for name, text in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        with tarfile.open(self.archive, "w:gz") as file:
            file.add(source, source.name)

    def apply(self) -> subprocess.CompletedProcess[str]:
        script = str(CMAKE / "ApplyPatches.cmake")
        settings = [
            f"-DARCHIVE={self.archive}",
            f"-DTREE={self.tree}",
            f"-DPATCHES={self.patches}",
            "-DVERSION=9.9.9",
        ]
        return subprocess.run(["cmake", *settings, "-P", script], capture_output=True, text=True, check=False)

    def counting(self) -> str:
        return (self.tree / "src" / "counting.txt").read_text()

    def files(self) -> dict[str, tuple[str, int]]:
        """Every file of the tree with its content and modification time."""
        paths = [path for path in self.tree.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.tree)): (path.read_text(), path.stat().st_mtime_ns) for path in paths
        }
