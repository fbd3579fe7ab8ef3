#!/usr/bin/env python3
"""Edit native/patches as commits of a git repository, and move them to another upstream version.

    python3 scripts/renew_patches.py checkout DIR              upstream in DIR, one commit for each patch
    python3 scripts/renew_patches.py export DIR                write native/patches from the commits
    python3 scripts/renew_patches.py port VERSION [ARCHIVE]    try the patches on another version of llama-cpp-python

Exit status: 0 done, 1 a patch does not fit, 2 bad input. CONTRIBUTING.md describes the steps.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
PRISTINE = "upstream"  # the tag of the commit that the patches follow

OK, MISFIT, BAD_INPUT = 0, 1, 2


class InputError(Exception):
    """Something given cannot be used; the message says what and why."""


@dataclass(frozen=True)
class Patch:
    """A patch file: a description for people, then the diff."""

    path: Path
    description: str
    diff: str

    @property
    def name(self) -> str:
        """0003-llama-graph.patch is the commit llama-graph."""
        return re.sub(r"^\d+-", "", self.path.stem)

    @classmethod
    def read(cls, path: Path) -> Patch:
        text = path.read_text(encoding="utf-8")
        start = text.find("diff --git ")
        if start < 0:
            raise InputError(f"{path} holds no diff")
        return cls(path, text[:start].strip(), text[start:])


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    try:
        status: int = args.run(args)
    except InputError as error:
        print(f"renew_patches: {error}", file=sys.stderr)
        return BAD_INPUT
    except subprocess.CalledProcessError as error:
        print(f"renew_patches: {' '.join(map(str, error.cmd))} failed:\n{error.stderr}", file=sys.stderr)
        return BAD_INPUT
    return status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="renew_patches.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--patches", type=Path, default=NATIVE / "patches", help="the patches (default: native/patches)"
    )
    commands = parser.add_subparsers(metavar="checkout | export | port", required=True)

    checkout = commands.add_parser(
        "checkout",
        help="upstream as a git repository, one commit for each patch",
        description="Unpack upstream into DIR and commit each patch. Stops at one that does not fit; run again when "
        "that is put right and committed.",
        epilog="example: python3 scripts/renew_patches.py checkout ../hooks",
    )
    checkout.add_argument("directory", type=Path, metavar="DIR")
    checkout.add_argument("--archive", type=Path, help="a source distribution other than the pinned one")
    checkout.set_defaults(run=run_checkout)

    export = commands.add_parser(
        "export",
        help="write the patches back from the commits",
        description="Write one patch for each commit of DIR that follows upstream, numbered in their order, and "
        "remove the patches that have no commit any more.",
        epilog="example: python3 scripts/renew_patches.py export ../hooks",
    )
    export.add_argument("directory", type=Path, metavar="DIR")
    export.set_defaults(run=run_export)

    port = commands.add_parser(
        "port",
        help="try the patches on another version",
        description="Tell for each patch whether it fits another version, and which hunks do not. Changes nothing.",
        epilog="example: python3 scripts/renew_patches.py port 0.3.40",
    )
    port.add_argument("version", metavar="VERSION", help="a version of llama-cpp-python")
    port.add_argument(
        "archive", type=Path, nargs="?", metavar="ARCHIVE", help="its source distribution (default: fetch it)"
    )
    port.set_defaults(run=run_port)
    return parser.parse_args(argv)


# ---- checkout


def run_checkout(args: argparse.Namespace) -> int:
    directory: Path = args.directory
    patches = read_patches(args.patches)
    if not (directory / ".git").exists():
        if directory.exists() and any(directory.iterdir()):
            raise InputError(f"{directory} is not empty, and not a checkout that this script made")
        unpack(args.archive or pinned_archive(), directory)
        make_repository(directory)
    require_clean(directory)

    done = [subject for _, subject in commits(directory)]
    if done != [patch.name for patch in patches[: len(done)]]:
        raise InputError(
            f"the commits of {directory} are not the first patches of {args.patches}: {', '.join(done)}"
        )

    for patch in patches[len(done) :]:
        rejected = apply(directory, patch)
        if rejected:
            message = f"-m {patch.name}"
            print(
                f"{patch.path.name} does not fit:\n"
                + "".join(f"    {hunk}\n" for hunk in rejected)
                + f"What fits is applied. Work the rejected hunks (*.rej) in by hand, remove the .rej files, then\n"
                f"    git -C {directory} add --all && git -C {directory} commit {message}\n"
                f"    python3 scripts/renew_patches.py checkout {directory}\n"
                "and in the end\n"
                f"    python3 scripts/renew_patches.py export {directory}"
            )
            return MISFIT
        commit(directory, "\n\n".join(filter(None, [patch.name, patch.description])))
        print(f"{patch.path.name} applied")
    print(f"{directory} holds upstream and {len(patches)} patches; write them back with export")
    return OK


def make_repository(directory: Path) -> None:
    git(directory, "init", "--quiet")
    for name, value in (
        ("core.autocrlf", "false"),
        ("commit.gpgsign", "false"),
        ("user.name", "minicache-cpp"),
        ("user.email", "minicache-cpp@localhost"),
    ):
        git(directory, "config", name, value)
    commit(directory, PRISTINE)
    git(directory, "tag", PRISTINE)


def commit(directory: Path, message: str) -> None:
    # --force, as upstream's .gitignore would leave out files of its own release
    git(directory, "add", "--all", "--force")
    git(directory, "commit", "--quiet", "--no-verify", "--cleanup=verbatim", "--message", message)


# ---- export


def run_export(args: argparse.Namespace) -> int:
    directory: Path = args.directory
    if not (directory / ".git").exists():
        raise InputError(
            f"{directory} is not a checkout; make one with: renew_patches.py checkout {directory}"
        )
    require_clean(directory)
    written = []
    for number, (revision, subject) in enumerate(commits(directory), start=1):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", subject):
            raise InputError(
                f"the commit {subject!r} does not name a file; give it a subject such as llama-graph"
            )
        body = git(directory, "log", "-1", "--format=%b", revision).strip()
        path = args.patches / f"{number:04d}-{subject}.patch"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (f"{body}\n\n" if body else "") + diff(directory, revision)
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
        print(f"wrote {path.name}")
    for path in args.patches.glob("*.patch"):
        if path not in written:
            path.unlink()
            print(f"removed {path.name}")
    return OK


def diff(directory: Path, revision: str) -> str:
    """What a commit changes, without the hashes, which would change with every commit before it."""
    options = ["--no-color", "--no-ext-diff", "--no-renames", "--unified=3", "--diff-algorithm=myers"]
    text = git(directory, "diff", *options, "--src-prefix=a/", "--dst-prefix=b/", f"{revision}^", revision)
    return re.sub(r"^index [0-9a-f]+\.\.[0-9a-f]+( \d+)?\n", "", text, flags=re.MULTILINE)


# ---- port


def run_port(args: argparse.Namespace) -> int:
    patches = read_patches(args.patches)
    with tempfile.TemporaryDirectory() as scratch:
        archive = args.archive or download(args.version, Path(scratch))
        tree = Path(scratch) / "tree"
        unpack(archive, tree)
        misfits = 0
        for patch in patches:
            rejected = apply(tree, patch)
            misfits += bool(rejected)
            print(f"{patch.path.name}: {'does not fit' if rejected else 'fits'}")
            for hunk in rejected:
                print(f"    {hunk}")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    print(
        f"\nllama-cpp-python {args.version}, sha256 {digest}: {len(patches) - misfits} of {len(patches)} patches fit"
    )
    return MISFIT if misfits else OK


def download(version: str, directory: Path) -> Path:
    environment = {
        **os.environ,
        "PYTHONPATH": str(NATIVE / "cmake" / "sdist_backend"),
        "MINICACHE_SDIST_VERSION": version,
    }
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(directory),
        f"llama-cpp-python=={version}",
    ]
    subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE, text=True)
    return next(directory.glob("*.tar.gz"))


# ---- patches, trees, git


def read_patches(directory: Path) -> list[Patch]:
    return [Patch.read(path) for path in sorted(directory.glob("*.patch"))]


def pinned_archive() -> Path:
    command = ["cmake", "-P", str(NATIVE / "cmake" / "FetchUpstream.cmake")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Path(output.strip().splitlines()[-1])


def unpack(archive: Path, directory: Path) -> None:
    """vendor/llama.cpp of a source distribution."""
    if not archive.is_file():
        raise InputError(f"{archive} is not a file")
    with tarfile.open(archive) as file:
        directory.mkdir(parents=True, exist_ok=True)
        members = list(below(file, "vendor/llama.cpp/"))
        if not members:
            raise InputError(f"{archive} holds no vendor/llama.cpp")
        if hasattr(tarfile, "data_filter"):
            file.extractall(directory, members, filter="data")
        else:
            file.extractall(directory, members)
    # a link to a repository that is not there
    (directory / ".git").unlink(missing_ok=True)


def below(file: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    for member in file:
        _, _, name = member.name.partition("/")
        if name.startswith(path) and (member.isfile() or member.issym()):
            member.name = name[len(path) :]
            yield member


def apply(directory: Path, patch: Patch) -> list[str]:
    """Apply what fits, and return the names of the hunks that do not; they are left in .rej files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # else git would take the directory as a part of the repository around it, and skip every file
    environment["GIT_CEILING_DIRECTORIES"] = str(directory.resolve().parent)
    environment["LC_ALL"] = "C"
    command = [
        "git",
        "-c",
        "core.autocrlf=false",
        "apply",
        "--reject",
        "--verbose",
        "--whitespace=nowarn",
        "-",
    ]
    result = subprocess.run(
        command, cwd=directory, env=environment, input=patch.diff.encode(), capture_output=True, check=False
    )
    if result.returncode == 0:
        return []
    report = result.stderr.decode(errors="replace")
    rejected = list(rejected_hunks(report))
    return rejected or [report.strip()]


def rejected_hunks(report: str) -> Iterator[str]:
    file = ""
    for line in report.splitlines():
        if match := re.fullmatch(r"Applying patch (.+) with \d+ rejects?\.\.\.", line):
            file = match[1]
        elif match := re.fullmatch(r"Rejected hunk #(\d+)\.", line):
            yield f"{file}: hunk {match[1]}"
        elif match := re.fullmatch(
            r"error: (.+): (No such file or directory|already exists in working directory)", line
        ):
            yield f"{match[1]}: {match[2]}"


def commits(directory: Path) -> list[tuple[str, str]]:
    """Revision and subject of the commits after upstream, oldest first."""
    lines = git(directory, "log", "--reverse", "--format=%H %s", f"{PRISTINE}..HEAD").splitlines()
    return [(revision, subject) for revision, _, subject in (line.partition(" ") for line in lines)]


def require_clean(directory: Path) -> None:
    changes = git(directory, "status", "--porcelain", "--untracked-files=all")
    if changes:
        raise InputError(f"{directory} has changes that are not committed:\n{changes}")


def git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
