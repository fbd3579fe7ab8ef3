"""The `minicache` command: the table of subcommands, and what they have in common."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .errors import MiniCacheError, OutputError
from .host.output import drop_unwritten, prepare_streams, show, tell
from .host.paths import user_path
from .version import __version__

# name -> what it does; module_of(name) has EXAMPLE, configure(parser) and run(args) -> exit code. Where it also has
# PASSES_ON = True, args.passed_on is what follows -- on the command line.
COMMANDS = {
    "chat": "chat with a model whose KV cache is stored as MiniCache",
    "serve": "serve a model over HTTP with llama-server, its KV cache stored as MiniCache",
    "calibrate": "fit shared codes to a model, and write the plan that says how its cache is stored",
    "inspect": "show what a model's KV cache takes, without loading the model",
    "evaluate": "measure what KV caches cost in quality, compared with the model's own f16 cache",
    "longbench": "score answers to LongBench's questions with each of several KV caches",
    "bench": "measure prefill and decode speed of plain and MiniCache caches",
    "models": "list the models that can be fetched by name, fetch them, and remove them",
}

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130


def main(argv: list[str] | None = None) -> int:
    """The whole command; returns the exit code."""
    return guarded(whole_command, argv)


def run_command(name: str, argv: list[str] | None = None) -> int:
    """One subcommand by itself, as `python -m minicache_cpp.<name>` runs it; returns the exit code."""
    return guarded(functools.partial(one_command, name), argv)


def guarded(command: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Runs a command; errors that the user can put right are printed in one line, without a traceback.

    Modules are imported inside as well: where the native library cannot be loaded, that fails.
    """
    prepare_streams()
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except (MiniCacheError, OutputError, ImportError) as error:
        tell(f"minicache: {error}")
        return BAD_INPUT
    except MemoryError:
        tell("minicache: there is not enough memory for this")
        return BAD_INPUT
    except BrokenPipeError:  # nobody reads the output any more
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        drop_unwritten()


def whole_command(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="minicache",
        description="MiniCache KV-cache compression inside llama.cpp.",
        epilog="example: minicache chat model.gguf --ctx 8192 --config model.plan.gguf",
    )
    parser.add_argument("--version", action="version", version=f"minicache-cpp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = module_of(name)
        command = commands.add_parser(
            name, help=summary, description=_sentence(summary), epilog=_epilog(module)
        )
        module.configure(command)
    return parse_and_run(parser, words, module_of(words[0]) if words and words[0] in COMMANDS else None)


def one_command(name: str, words: list[str]) -> int:
    module = module_of(name)
    parser = argparse.ArgumentParser(
        prog=f"minicache {name}", description=_sentence(COMMANDS[name]), epilog=_epilog(module)
    )
    parser.set_defaults(command=name)
    module.configure(parser)
    return parse_and_run(parser, words, module)


def parse_and_run(parser: argparse.ArgumentParser, argv: list[str], module: ModuleType | None) -> int:
    """Runs the command that `argv` names. module: the command's, None where `argv` begins with none."""
    args = parsed(parser, argv, module)
    return int(module_of(args.command).run(args))


def parsed(parser: argparse.ArgumentParser, argv: list[str], module: ModuleType | None) -> argparse.Namespace:
    """The arguments of a command; what follows -- is kept as it is, where the command passes it on to a program.

    Arguments of the type Path are as user_path() has them.
    """
    passes_on = getattr(module, "PASSES_ON", False) and "--" in argv
    end = argv.index("--") if passes_on else len(argv)
    try:
        args = parser.parse_args(argv[:end])
    finally:
        show(end="")  # where the parser has printed its help, and ends the program
    for name, value in vars(args).items():
        setattr(args, name, list(map(_at_home, value)) if isinstance(value, list) else _at_home(value))
    args.passed_on = argv[end + 1 :]
    return args


def _at_home(value: object) -> object:
    """An argument; in a path, ~ is a home folder."""
    return user_path(value) if isinstance(value, Path) else value


def module_of(name: str) -> ModuleType:
    """The module of a command: minicache_cpp.NAME, or minicache_cpp.NAME.command where NAME is a package."""
    module = importlib.import_module(f".{name}", __package__)
    return importlib.import_module(f".{name}.command", __package__) if hasattr(module, "__path__") else module


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


def _epilog(module: ModuleType) -> str:
    return f"example: {module.EXAMPLE}"


if __name__ == "__main__":
    sys.exit(main())
