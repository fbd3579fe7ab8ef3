#!/usr/bin/env python3
"""Runs the installed package once and prints, as JSON, what its CPU kernels computed; for build_wheels.py.

    python3 scripts/wheel_check.py random.gguf random.plan.gguf
    python3 scripts/wheel_check.py random.gguf random.plan.gguf --chat smollm2-135m.gguf

It is run in each environment and under each emulated processor, so it uses nothing but the package and NumPy. The text
is longer than a plan's window, so that attention reads codes, too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicache_cpp import Llama
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.settings import CacheSpec
from minicache_cpp.native import devices
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.context import SequenceContext
from minicache_cpp.reading.model import NativeModel

PROMPT, BATCH, STEPS, ANSWER = 160, 32, 16, 8  # tokens


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file; no tokenizer is needed")
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a plan for it")
    parser.add_argument("--chat", type=Path, metavar="MODEL", help="also chat with this model")
    args = parser.parse_args(argv)
    start = time.monotonic()
    result = read(args.model, args.plan)
    if args.chat:
        result["chat"] = chat(args.chat)
    kernels = devices.cpu_library()
    result["kernels"] = kernels.name if kernels else None
    result["seconds"] = round(time.monotonic() - start, 1)
    print(json.dumps(result))
    return 0


def read(path: Path, plan: Path) -> dict[str, Any]:
    """The likeliest token after each of the last ones of a text, the logits after the very last, and the cache."""
    model = NativeModel(path)
    context = SequenceContext(model, CacheSpec.parse(str(plan)), PROMPT + STEPS, BATCH, threads=1)
    batches = [(at, BATCH) for at in range(0, PROMPT, BATCH)] + [(PROMPT + i, 1) for i in range(STEPS)]
    tokens: list[int] = []
    for start, n_tokens in batches:
        context.evaluate(start, n_tokens)
        last = last_logits(context.ctx, context.n_vocab)
        tokens.append(int(last.argmax()))
    report = read_report(context.ctx)
    return {
        "tokens": tokens,
        "logits": [round(float(value), 5) for value in last],
        "bytes": report.bytes,
        "merged": sum(layer.kind == "merged" for layer in report.layers),
    }


def last_logits(context: Any, n_vocab: int) -> NDArray[np.float32]:
    """A copy of the logits of a native context's last token."""
    pointer = ctypes.cast(llama_h.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
    return np.array(pointer[:n_vocab], np.float32)


def chat(path: Path) -> dict[str, Any]:
    """The beginning of the likeliest answer, with the plan that the package has for the model.

    `steps` has, where each of its tokens stands, the likeliest and the next likely one, and by how many standard
    deviations of all logits theirs differ.
    """
    llm: Any = Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, minicache="auto", verbose=False)
    messages: Any = [{"role": "user", "content": "hi"}]
    answer: Any = llm.create_chat_completion(messages, temperature=0.0, max_tokens=ANSWER)
    tokens, n_prompt = llm.input_ids[: llm.n_tokens].tolist(), answer["usage"]["prompt_tokens"]
    llm.reset()
    steps = []
    for begin, end in zip([0, *range(n_prompt, len(tokens))], range(n_prompt, len(tokens) + 1), strict=True):
        llm.eval(tokens[begin:end])
        found = last_logits(llm.ctx, llm.n_vocab())
        first = int(found.argmax())
        # without argsort(), which goes wrong under qemu 7.2 where NumPy uses AVX2 for it
        others = found.copy()
        others[first] = -np.inf
        second = int(others.argmax())
        steps.append((first, second, round(float((found[first] - found[second]) / found.std()), 5)))
    return {"text": str(answer["choices"][0]["message"]["content"]), "steps": steps}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
