"""What the commands of this simulation have in common: a model, a text, and how errors are reported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from minicache_cpp import MiniCacheError
from minicache_cpp.text.files import read_texts
from minicache_cpp.text.vocabulary import Vocabulary


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """MODEL, --text and --ctx."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file of a llama or qwen2 model")
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="UTF-8 text; may be repeated",
    )
    parser.add_argument(
        "--ctx", type=int, default=1024, metavar="N", help="tokens that are read (default: 1024)"
    )


def guarded(name: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Runs a command and returns its exit status; bad input is reported in one line."""
    try:
        run(args)
    except MiniCacheError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 1
    return 0


def first_tokens(model: Path, paths: list[Path], n_ctx: int) -> list[int]:
    """The first `n_ctx` tokens of the texts, after a beginning-of-text token where the model needs one."""
    text = read_texts(paths)
    with Vocabulary(model) as vocabulary:
        tokens = vocabulary.begun(vocabulary.tokenize(text))[:n_ctx]
    if len(tokens) < n_ctx:
        raise MiniCacheError(
            f"the text has {len(tokens)} tokens, too few for --ctx {n_ctx}; give more --text"
        )
    return tokens
