#!/usr/bin/env python3
"""Build, install and run minicache-cpp from a source checkout; needs only Python, a C++ compiler, CMake and git.

    python3 scripts/bootstrap.py setup      make .venv, build the native libraries, install
    python3 scripts/bootstrap.py chat       the same, then fetch the demo model, smollm2-135m, and chat with it
    python3 scripts/bootstrap.py serve      the same with llama-server, then serve the demo model over HTTP
    python3 scripts/bootstrap.py test       the same, then run all tests
    python3 scripts/bootstrap.py bench      the same, then measure the speed

Arguments after -- go to the program that is run:  python3 scripts/bootstrap.py chat -- --prompt "hi" --max-tokens 50
A MODEL stands first among them; then the demo model is not fetched.

CMAKE_ARGS is passed to CMake:  CMAKE_ARGS="-DGGML_CUDA=on" python3 scripts/bootstrap.py setup
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_half import HOOK, NO_NATIVE_HALF, unpack_python_half

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOGS = ROOT / "build" / "log"
WINDOWS = sys.platform == "win32"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

DEMO_MODEL = "smollm2-135m"  # a name of `minicache models`
# processes that run tests at the same time; each may take some GiB of memory
MOST_WORKERS = 4

TOOL_TARGETS = (
    "test-backend-ops",
    "test-save-load-state",
    "llama-batched-bench",
    "llama-bench",
    "llama-cli",
    "llama-completion",
    "llama-perplexity",
    "llama-server",
)
SERVER_TARGETS = ("llama-server",)
# then the libraries include libmtmd, which else comes with llama-server
MTMD_WANTED = re.compile(r"-DMINICACHE_MTMD(:BOOL)?=(on|1|true|yes)\b", re.IGNORECASE)
TEST_TARGETS = ("minicache-test", "minicache-cuda-on-cpu", "minicache-bench-kernels", "minicache-threads")


class BootstrapError(Exception):
    """Ends the program with a message that says how to continue."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def main(argv: Sequence[str]) -> int:
    own, passed_on = split_at_dashes(argv)
    args = parse(own)
    try:
        check_tools()
        status: int = args.run(args, passed_on)
        return status
    except BootstrapError as error:
        say(f"\nbootstrap: {error}")
        return error.status
    except KeyboardInterrupt:
        say("\nbootstrap: stopped; the next run continues from here")
        return INTERRUPTED


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bootstrap.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        dest="command", metavar="setup | chat | serve | test | bench", required=True
    )
    for name, run, summary, example in (
        ("setup", run_setup, "make .venv, build, install", "setup --extra plot"),
        (
            "chat",
            run_chat,
            "chat with the demo model, which is fetched once",
            'chat -- --prompt "hi" --max-tokens 50',
        ),
        ("serve", run_serve, "serve the demo model, which is fetched once", "serve -- --ctx 8192 --slots 4"),
        ("test", run_test, "run all tests", "test -- -k kernels -x"),
        ("bench", run_bench, "measure prefill and decode speed", "bench -- --ctx 4096"),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example: python3 scripts/bootstrap.py {example}",
        )
        command.add_argument(
            "--extra",
            action="append",
            default=[],
            metavar="NAME",
            choices=("plot", "lm-eval", "desktop", "test", "dev"),
            help="also install these optional dependencies: plot, lm-eval, desktop, test or dev; may be repeated",
        )
        command.set_defaults(run=run)
    return parser.parse_args(argv)


# ---- commands


def run_setup(args: argparse.Namespace, passed_on: list[str]) -> int:
    if passed_on:
        raise BootstrapError("setup passes no arguments on; leave out -- and what follows it", BAD_INPUT)
    set_up(args.extra)
    say(f"ready: {relative(PYTHON)} -m minicache_cpp --help")
    return OK


def run_chat(args: argparse.Namespace, passed_on: list[str]) -> int:
    set_up(args.extra)
    if not names_model(passed_on):
        fetch_demo_model()
    return become([str(PYTHON), "-m", "minicache_cpp.chat", *passed_on], os.environ)


def run_serve(args: argparse.Namespace, passed_on: list[str]) -> int:
    set_up(args.extra, SERVER_TARGETS)
    if not names_model(passed_on):
        fetch_demo_model()
    return become([str(PYTHON), "-m", "minicache_cpp.serve", *passed_on], os.environ)


def run_bench(args: argparse.Namespace, passed_on: list[str]) -> int:
    set_up(args.extra)
    if not names_model(passed_on):
        fetch_demo_model()
    return become([str(PYTHON), "-m", "minicache_cpp", "bench", *passed_on], os.environ)


def run_test(args: argparse.Namespace, passed_on: list[str]) -> int:
    set_up([*args.extra, "test", "desktop"])
    with step("upstream's tools and the native tests"):
        RELEASE.build([*TOOL_TARGETS, *TEST_TARGETS])
    with step("the native tests under sanitizers"):
        SANITIZED.build(["minicache-test"])
    with step("the stock library to compare with"):
        STOCK.build(["minicache-libraries"])
    environment = {
        **os.environ,
        "MINICACHE_SMOLLM2": str(fetch_demo_model()),
        "MINICACHE_STOCK_LIB": str(STOCK.bin),
        "MINICACHE_TOOLS_BIN": str(RELEASE.bin),
        "MINICACHE_NATIVE_TEST": str(RELEASE.program("minicache-test")),
        "MINICACHE_NATIVE_TEST_SAN": str(SANITIZED.program("minicache-test")),
        "MINICACHE_BENCH_KERNELS": str(RELEASE.program("minicache-bench-kernels")),
        "MINICACHE_THREADS": str(RELEASE.program("minicache-threads")),
        "MINICACHE_CUDA_ON_CPU": str(RELEASE.bin / "libminicache-cuda-on-cpu.so"),
        "MINICACHE_REQUIRE_ALL": "1",  # all of this is built, so a test that does not find it fails
    }
    os.chdir(ROOT)
    # a file's tests share models and contexts that take time to make, so they stay together
    workers = ["-n", str(min(usable_cores(), MOST_WORKERS)), "--dist", "loadfile"]
    return become([str(PYTHON), "-m", "pytest", *workers, *passed_on], environment)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def names_model(passed_on: Sequence[str]) -> bool:
    """Whether the arguments of a command name a MODEL, which stands first."""
    return bool(passed_on) and not passed_on[0].startswith("-")


def fetch_demo_model() -> Path:
    """Fetch the demo model into the user's cache directory, if it is not there, and return its path."""
    command = [str(PYTHON), "-m", "minicache_cpp", "models", "get", DEMO_MODEL]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise BootstrapError(f"the demo model {DEMO_MODEL} could not be fetched", done.returncode)
    return Path(done.stdout.strip())


def become(command: list[str], environment: Mapping[str, str]) -> int:
    """Replace this process with the program, so that signals reach it and its exit status is returned."""
    sys.stdout.flush()
    sys.stderr.flush()
    if WINDOWS:
        return subprocess.run(command, env=dict(environment), check=False).returncode
    return os.execve(command[0], command, dict(environment))


# ---- the tools that are needed


def check_tools() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036, as any python3 may have started it
        raise BootstrapError(
            f"Python 3.10 or later is needed, this is {platform.python_version()}; "
            "run it with another one, such as python3.12 scripts/bootstrap.py",
            BAD_INPUT,
        )
    missing = [name for name in ("cmake", "git") if shutil.which(name) is None]
    compilers = [os.environ.get("CXX", "c++").split()[0], "g++", "clang++"]
    if not WINDOWS and not any(map(shutil.which, compilers)):
        missing.append("a C++ compiler")
    if missing:
        raise BootstrapError(
            f"not found: {', '.join(missing)}. On Debian or Ubuntu: apt-get install build-essential cmake git; "
            "on macOS: xcode-select --install, and cmake from pip or Homebrew",
            BAD_INPUT,
        )
    output = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", output)
    if version is None or (int(version[1]), int(version[2])) < (3, 21):
        found = version[0] if version else "no version that works"
        raise BootstrapError(
            f"CMake 3.21 or later is needed, found {found}; try pip install cmake", BAD_INPUT
        )


# ---- the native builds


def cache_dir() -> Path:
    """Where the download and the native builds are; native/cmake/FetchUpstream.cmake uses the same folder."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif WINDOWS:
        base = Path(os.environ["LOCALAPPDATA"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "minicache-cpp"


@dataclass(frozen=True)
class NativeBuild:
    """A build directory in the user's cache, for one set of options.

    It holds a copy of the native sources, so that every clone of the repository can use it and only changed sources are
    compiled again.
    """

    name: str
    options: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def directory(self) -> Path:
        settings = [
            *self.arguments(),
            *(
                os.environ.get(name, "")
                for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_GENERATOR")
            ),
            sys.platform,
            platform.machine(),
            cpu_features(),
        ]
        return cache_dir() / "build" / f"{self.name}-{digest(json.dumps(settings).encode())[:12]}"

    @property
    def bin(self) -> Path:
        return self.directory / "build" / "bin"

    def program(self, name: str) -> Path:
        return self.bin / (f"{name}.exe" if WINDOWS else name)

    def arguments(self) -> list[str]:
        return [*shlex.split(os.environ.get("CMAKE_ARGS", "")), *self.options]

    def source_key(self) -> str:
        return digest_of_files(ROOT, self.inputs)

    @property
    def stamp(self) -> Path:
        """The file that says of each target from which sources it was built."""
        return self.directory / "built.json"

    def is_built(self, targets: Sequence[str]) -> bool:
        built, key = read_json(self.stamp), self.source_key()
        return self.bin.is_dir() and all(built.get(target) == key for target in targets)

    def build(self, targets: Sequence[str]) -> None:
        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        with lock(directory / "lock"):
            key = self.source_key()
            if self.is_built(targets):
                return
            for path in ("native", "tests/native"):
                synchronize(ROOT / path, directory / "source" / path)
            source, build = str(directory / "source" / "native"), str(directory / "build")
            environment = {**os.environ, **generator_variable()}
            log = f"{self.name}.log"
            run(["cmake", "-S", source, "-B", build, *self.arguments()], log, environment)
            run(["cmake", "--build", build, *jobs(), "--target", *targets], log, environment, append=True)
            write_json(self.stamp, {**read_json(self.stamp), **dict.fromkeys(targets, key)})


# the tools and tests are configured from the start: switching them on later would configure everything again
RELEASE = NativeBuild("release", ("-DMINICACHE_TOOLS=ON", "-DMINICACHE_TESTS=ON"), ("native", "tests/native"))
STOCK = NativeBuild("stock", ("-DMINICACHE_PATCH=OFF",), ("native/CMakeLists.txt", "native/cmake"))
SANITIZED = NativeBuild(
    "sanitized",
    (
        "-DMINICACHE_TESTS=ON",
        "-DMINICACHE_SANITIZE=address,undefined",
        "-DGGML_CUDA=OFF",
        "-DGGML_OPENMP=OFF",  # the sanitizers do not know its threads
        "-DGGML_LLAMAFILE=OFF",  # not tested, and slow to compile
        "-DGGML_CPU_REPACK=OFF",
    ),
    ("native", "tests/native"),
)


def cpu_features() -> str:
    # by default ggml is built for the processor of this machine, and machines may share a home directory
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def generator_variable() -> dict[str, str]:
    """The generator for CMake and for the build backend: the same one for both, Ninja where it is installed."""
    if WINDOWS or os.environ.get("CMAKE_GENERATOR"):
        return {}
    return {"CMAKE_GENERATOR": "Ninja" if shutil.which("ninja") else "Unix Makefiles"}


def jobs() -> list[str]:
    if os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL"):
        return []
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ["--parallel", str(cpus)]


def synchronize(source: Path, target: Path) -> None:
    """Make target a copy of source; files that have not changed keep their times."""
    wanted = {path.relative_to(source) for path in files_below(source)}
    for path in files_below(target) if target.is_dir() else ():
        if path.relative_to(target) not in wanted:
            path.unlink()
    for name in wanted:
        content = (source / name).read_bytes()
        if not (target / name).is_file() or (target / name).read_bytes() != content:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock, so that two clones do not build in the same directory at the same time."""
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- the virtual environment


def set_up(extras: Sequence[str], programs: Sequence[str] = ()) -> None:
    if not PYTHON.exists():
        with step("virtual environment .venv"):
            run(
                [sys.executable, "-m", "venv", "--clear", str(VENV)],
                "venv.log",
                hint="on Debian or Ubuntu: apt-get install python3-venv",
            )
    with step("llama.cpp with MiniCache (takes some minutes the first time)"):
        RELEASE.build(["minicache-libraries", *programs])

    stamp = VENV / "minicache.json"
    installed = read_json(stamp)
    wanted = sorted({*extras, *installed.get("extras", [])})
    dependencies = digest((ROOT / "pyproject.toml").read_bytes() + HOOK.encode())
    package = f"{digest_of_files(ROOT, ['python', 'models'])} {RELEASE.directory.name} {RELEASE.source_key()}"
    package += " with llama-server" * RELEASE.is_built(SERVER_TARGETS)

    if installed.get("dependencies") != dependencies or installed.get("extras") != wanted:
        with step("Python packages"):
            requirement = f".[{','.join(wanted)}]" if wanted else "."
            pip_install("scikit-build-core>=0.10")
            # pip leaves what is installed with the same version number
            pip_install("--no-deps", "--force-reinstall", str(llama_cpp_python()))
            pip_install("--no-build-isolation", requirement)
    elif installed.get("package") != package:
        with step("installing minicache-cpp"):
            pip_install("--no-build-isolation", "--no-deps", "--force-reinstall", ".")
    write_json(stamp, {"dependencies": dependencies, "extras": wanted, "package": package})


def pip_install(*arguments: str) -> None:
    # The wheel takes the libraries that are built already, and nothing is compiled again. A llama-server of other
    # sources, with its libmtmd, may lie beside them.
    server = RELEASE.is_built(SERVER_TARGETS)
    options = [
        f"-DMINICACHE_PREBUILT={RELEASE.bin.as_posix()}",
        f"-DMINICACHE_SERVER={'ON' if server else 'OFF'}",
        f"-DMINICACHE_MTMD={'ON' if server or MTMD_WANTED.search(os.environ.get('CMAKE_ARGS', '')) else 'OFF'}",
    ]
    cmake_args = {"CMAKE_ARGS": shlex.join(options)}
    pip("install", *arguments, environment={**os.environ, **generator_variable(), **cmake_args})


def pip(*arguments: str, environment: Mapping[str, str]) -> None:
    run([str(PYTHON), "-m", "pip", *arguments], "pip.log", environment, append=True)


def llama_cpp_python() -> Path:
    """A wheel of llama-cpp-python without its native half, made from the archive that our build has fetched.

    It is not installed by name from the index, as pip would cache the wheel and use it wherever llama-cpp-python is
    installed next.
    """
    archive = fetched_archive()
    directory = cache_dir() / "wheels" / digest(HOOK.encode())[:12]
    name = archive.name.removesuffix(".tar.gz")
    if not (wheels := sorted(directory.glob(f"{name}-py3-none-*.whl"))):
        with contextlib.ExitStack() as cleanup:
            unfinished = directory / f"unfinished-{os.getpid()}"
            cleanup.callback(shutil.rmtree, unfinished, ignore_errors=True)
            sources = unpack_python_half(archive, unfinished / "sources")
            environment = {**os.environ, **generator_variable(), "CMAKE_ARGS": NO_NATIVE_HALF}
            options = ["--no-build-isolation", "--no-cache-dir", "--no-deps", "--wheel-dir", str(unfinished)]
            pip("wheel", *options, str(sources), environment=environment)
            wheels = [wheel.replace(directory / wheel.name) for wheel in unfinished.glob("*.whl")]
    return wheels[0]


def fetched_archive() -> Path:
    given = [
        argument for argument in RELEASE.arguments() if argument.startswith("-DMINICACHE_UPSTREAM_ARCHIVE")
    ]
    script = ROOT / "native" / "cmake" / "FetchUpstream.cmake"
    output = run(["cmake", *given, "-P", str(script)], "fetch.log")
    return Path(output.strip().splitlines()[-1])


# ---- steps


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    start = time.monotonic()
    say(f"  {name} ...", end="")
    yield
    seconds = f"{time.monotonic() - start:.1f} s"
    say(f"\r  {name} ... {seconds}" if sys.stderr.isatty() else f" {seconds}")


PROGRESS = re.compile(r"\[\s*(\d+%|\d+/\d+)\]")


def run(
    command: Sequence[str],
    log_name: str,
    environment: Mapping[str, str] | None = None,
    append: bool = False,
    hint: str = "",
) -> str:
    """Run a command with its output in a log file, and return the output; BootstrapError with its end on failure."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / log_name
    lines: list[str] = []
    with log.open("a" if append else "w", encoding="utf-8", buffering=1) as file:
        file.write(f"$ {shlex.join(command)}\n")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=ROOT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                lines.append(line)
                if (match := PROGRESS.match(line)) and sys.stderr.isatty():
                    say(f"\x1b[s {match[1]}\x1b[u", end="")
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
    if process.returncode != 0:
        tail = "".join(f"    {line}" for line in lines[-25:])
        raise BootstrapError(
            f"{Path(command[0]).name} failed:\n{tail}\nthe whole output: {relative(log)}\n"
            f"{hint or 'mend it and run the same command again; finished steps are not repeated'}"
        )
    return "".join(lines)


def say(text: str, end: str = "\n") -> None:
    # stdout belongs to the program that is run
    print(text, end=end, file=sys.stderr, flush=True)


def relative(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path


# ---- files


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of_files(root: Path, names: Sequence[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        for path in files_below(root / name) if (root / name).is_dir() else [root / name]:
            total.update(f"{path.relative_to(root).as_posix()} {digest(path.read_bytes())}\n".encode())
    return total.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
