"""What commands print: answers on stdout, everything else on stderr.

A command ends where its answer cannot be printed, as on a full disk. Where nobody can read what it says beside the
answer, it goes on.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

from ..errors import OutputError

# bytes of a file's name that are not UTF-8 are in these characters (PEP 383), each 0xDC00 more than the byte
BYTES = range(0xDC80, 0xDD00)


def show(text: object = "", end: str = "\n") -> None:
    """Prints a part of the answer, at once. Raises OutputError where that is not possible.

    A BrokenPipeError is no such case: nobody wants to read any more.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the output cannot be written: {error.strerror or error}") from error


def tell(text: object = "", end: str = "\n") -> None:
    """Prints something beside the answer, where that is possible."""
    if sys.stderr is not None:  # an app with windows has none
        with contextlib.suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Makes stdin, stdout and stderr such that a command need not care what they are.

    What is closed becomes the null device: a file that is opened later would take its number otherwise, and native code
    may write to that. Characters that stdout's encoding lacks are printed as question marks, and names of files as the
    bytes that they are.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (it stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_printable.__name__)


def drop_unwritten() -> None:
    """Drops what could not be written; the interpreter would complain when it tries again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is printed for a character that cannot be encoded, and the place to go on at (codecs.register_error())."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    return bytes([code - 0xDC00]) if code in BYTES else "?", error.start + 1


codecs.register_error(_printable.__name__, _printable)
