#!/usr/bin/env python3
"""Make the bundled models: fetch text, train a tokenizer and a small Llama, export GGUF, measure recall.

Example, all stages one after the other (the training is resumed if it was interrupted):

    pip install torch numpy tokenizers gguf
    python scripts/train_demo_model.py data tokenizer train export recall
    python scripts/train_demo_model.py --model mha train export recall

Needs a Debian system for the stage `data` (apt-get and dpkg-deb, as any user).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from demo_model.recipes import RECIPES

STAGES = ("data", "tokenizer", "train", "export", "recall")


def default_work_dir() -> Path:
    """Where packages, corpus and checkpoints are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "minicache-cpp" / "demo-model"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="+", choices=STAGES, metavar="STAGE", help=f"one or more of {', '.join(STAGES)}"
    )
    parser.add_argument("--model", choices=sorted(RECIPES), default="demo", help="which (default demo)")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=None,
        help="packages, corpus, checkpoints (default: minicache-cpp/demo-model in the user's cache)",
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="the GGUF (default: models/ of this repository)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of weights, tasks and order (default: the model's)"
    )
    parser.add_argument("--steps", type=int, default=None, help="steps in all; may be changed when resuming")
    parser.add_argument(
        "--decay-from",
        type=int,
        default=None,
        help="step from which the learning rate falls to zero; may be changed when resuming",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    parser.add_argument(
        "--trials", type=int, default=100, help="recall: questions per distance (default 100)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the stages in the order of the pipeline."""
    args = parse(argv)
    recipe = RECIPES[args.model]
    schedule = recipe.schedule
    if args.seed is not None:
        schedule = replace(schedule, seed=args.seed)
    if args.steps is not None or args.decay_from is not None:
        total = args.steps or schedule.total
        start = int(total * 0.8) if args.decay_from is None else args.decay_from
        schedule = replace(schedule, total=total, decays=(*schedule.decays[:-1], (start, total)))
    recipe = replace(recipe, schedule=schedule)
    work = args.work_dir or default_work_dir()
    home = work / args.model
    home.mkdir(parents=True, exist_ok=True)
    out = args.out or Path(__file__).resolve().parent.parent / "models" / recipe.file
    # Threads that spin at barriers lose their time slices on a machine that is doing other work as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported stage by stage: the data stage needs no PyTorch.
    if "data" in args.stages:
        from demo_model import corpus

        corpus.build(work)
    if "tokenizer" in args.stages:
        from demo_model import tokenizer

        tokenizer.train(work)
    if "train" in args.stages:
        from demo_model import train

        train.run(work, home, recipe, compile_model=not args.no_compile, threads=args.threads)
    if "export" in args.stages:
        from demo_model import export

        export.write(work, home, recipe.title, out)
    if "recall" in args.stages:
        from demo_model import recall

        recall.report(work, home, schedule.seed, args.trials, args.threads)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
