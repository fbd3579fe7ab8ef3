"""Look for faults by chance, for as long as there is time. Every finding has a seed, with which it happens again.

walks: random operations on the memory of tiny models, and after each of them the library beside a reference: the
NumPy oracle of the tests, or upstream's own f16 cache.

files: plans, models, saved states, saved chats and settings, changed at random and given to their readers, each in a
process of its own whose memory is limited.

faults: allocations that fail, disks that are full, and processes that are killed or interrupted, one after the other.

soak: many chats in one process, many requests to one server, a long text in one context.

threads: contexts of two models in several threads, for a build with ThreadSanitizer.

Example:

    python scripts/campaigns walks --steps 10000 --seed 1
    python scripts/campaigns files --reader plan state --steps 20000 --minutes 30
    python scripts/campaigns faults --kind disk --steps 100
    python scripts/campaigns soak --steps 1000 --model model.gguf

The exit code is 0 where nothing was found, 1 where something was, and 2 where an option is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# the tests have the oracles and the tiny models
sys.path[:0] = [str(ROOT / name) for name in ("scripts", "tests")]

from campaigns.options import BAD_INPUT  # noqa: E402
from minicache_cpp import MiniCacheError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python scripts/campaigns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    import support.blas_threads  # noqa: F401  # isort: skip  (must come before NumPy)
    from campaigns import faults, files, soak, threads, walks

    commands = parser.add_subparsers(dest="campaign", required=True, metavar="CAMPAIGN")
    for module in (walks, files, faults, soak, threads):
        module.configure(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except MiniCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    raise SystemExit(main())
