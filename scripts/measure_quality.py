#!/usr/bin/env python3
"""What a KV cache costs in quality: KL divergence, top-1 agreement, perplexity and recall, against f16.

Every configuration reads the same tokens as the model's own plain f16 cache. What is compared are the
distributions over the second half of each chunk, where most of the context is in the cache. Recall states
eight facts, lets prose follow, and asks for each of them; an answer counts when the first token of the value
is the likeliest one.

    python scripts/measure_quality.py --ctx 1024 --chunks 4

The default text is llama.cpp's own documentation, out of the pinned source archive: the demo model was not
trained on it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo_model.dialogues import TURN_START, VALUES, Fact, make_facts, turn
from minicache_cpp import CacheSpec, Llama
from minicache_cpp._native import bindings
from minicache_cpp.demo_model import demo_model
from minicache_cpp.errors import MiniCacheError

Floats = NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[1]
UPSTREAM_TEXTS = ("README.md", "docs/build.md", "docs/multimodal.md", "docs/function-calling.md")
CONFIGS = ("f16", "q8_0", "q4_0", "slerp:type=f16", "slerp:type=q8_0", "slerp:type=q4_0")
N_FACTS = 8


@dataclass
class Row:
    """One configuration; bytes are what the context really allocated for its cache."""

    name: str
    bytes: int
    ratio: float
    kl_mean: float
    kl_p99: float
    top1: float
    ppl: float
    recall: dict[int, float]  # by distance in tokens


def upstream_text() -> str:
    """Documentation of llama.cpp from the pinned archive, fetched if it is not there yet."""
    fetch = ROOT / "native" / "cmake" / "FetchUpstream.cmake"
    found = subprocess.run(["cmake", "-P", fetch], check=True, capture_output=True, text=True)
    with tarfile.open(found.stdout.split("\n")[-2]) as archive:
        texts = {}
        for member in archive:
            name = member.name.partition("vendor/llama.cpp/")[2]
            if name in UPSTREAM_TEXTS and (file := archive.extractfile(member)) is not None:
                texts[name] = file.read().decode("utf-8")
    return "\n\n".join(texts[name] for name in UPSTREAM_TEXTS)


def opened(model: Path, spec: CacheSpec, ctx: int, ubatch: int) -> Llama:
    plain = spec.minicache is None
    return Llama(
        str(model),
        n_ctx=ctx,
        n_batch=ubatch,
        n_ubatch=ubatch,
        logits_all=True,
        verbose=False,
        minicache=spec.minicache,
        type_k=spec.type_k if plain else None,
        type_v=spec.type_v if plain else None,
        flash_attn=True,
    )


def log_probabilities(llm: Llama, tokens: list[int]) -> Floats:
    """float32 [len(tokens), n_vocab], natural logarithms, of the token after each."""
    restart(llm)
    llm.eval(tokens)
    logits = llm.scores[: len(tokens)]
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)


def restart(llm: Llama) -> None:
    bindings.llama_memory_clear(bindings.llama_get_memory(llm.ctx), True)
    llm.reset()  # type: ignore[no-untyped-call]


def divergence(
    llm: Llama, chunks: list[list[int]], references: list[Floats]
) -> tuple[float, float, float, float]:
    """Mean and 99th percentile of the KL divergence in nats, top-1 agreement, perplexity."""
    kl: list[Floats] = []
    same: list[NDArray[np.bool_]] = []
    loss: list[Floats] = []
    for tokens, reference in zip(chunks, references, strict=True):
        half = len(tokens) // 2
        ours, theirs = log_probabilities(llm, tokens)[half:], reference[half:]
        kl.append((np.exp(theirs) * (theirs - ours)).sum(axis=1))
        same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        loss.append(-ours[np.arange(len(ours) - 1), tokens[half + 1 :]])
    all_kl = np.concatenate(kl)
    return (
        float(all_kl.mean()),
        float(np.quantile(all_kl, 0.99)),
        float(np.concatenate(same).mean()),
        float(np.exp(np.concatenate(loss).mean())),
    )


def recall(llm: Llama, prose: list[int], distance: int, rounds: int) -> float:
    """Share of facts answered rightly, with about `distance` tokens of prose between telling and asking."""
    rng = random.Random(distance)
    right = 0
    for _ in range(rounds):
        facts = make_facts(rng, N_FACTS)
        told = "".join(text for text, _ in turn("user", " ".join(fact.statement for fact in facts)))
        start = rng.randrange(len(prose) - distance)
        between = llm.detokenize(prose[start : start + distance]).decode("utf-8", "replace")
        read = "".join(text for text, _ in turn("user", "Read this. " + between) + turn("assistant", "Done."))
        restart(llm)
        llm.eval(tokenize(llm, told + read))
        right += sum(answers(llm, fact) for fact in facts)
    return right / (rounds * N_FACTS)


def answers(llm: Llama, fact: Fact) -> bool:
    """Ask for one fact, and leave the context as it was."""
    n_before = llm.n_tokens
    asked = "".join(text for text, _ in turn("user", fact.question)) + f"{TURN_START}assistant\n{fact.before}"
    llm.eval(tokenize(llm, asked))
    likeliest = int(llm.scores[llm.n_tokens - 1].argmax())
    bindings.llama_memory_seq_rm(bindings.llama_get_memory(llm.ctx), 0, n_before, -1)
    llm.n_tokens = n_before
    return likeliest == tokenize(llm, " " + fact.value)[0]


def tokenize(llm: Llama, text: str) -> list[int]:
    return list(llm.tokenize(text.encode("utf-8"), add_bos=False, special=True))


def measure(args: argparse.Namespace) -> Iterator[Row]:
    text = args.text.read_text(encoding="utf-8") if args.text else upstream_text()
    n_ctx = max(args.ctx, *args.distance, 0) + 768  # room for the facts and a question
    references: list[Floats] = []
    for name in args.config or CONFIGS:
        spec = CacheSpec.parse(name)
        with opened(args.model, spec, n_ctx, args.ubatch) as llm:
            tokens = tokenize(llm, text)
            if len(tokens) < args.chunks * args.ctx:
                raise MiniCacheError(f"the text has {len(tokens)} tokens, fewer than --chunks times --ctx")
            chunks = [tokens[i * args.ctx : (i + 1) * args.ctx] for i in range(args.chunks)]
            if not references:
                with opened(args.model, CacheSpec.parse("f16"), n_ctx, args.ubatch) as full:
                    references = [log_probabilities(full, chunk) for chunk in chunks]
            kl_mean, kl_p99, top1, ppl = divergence(llm, chunks, references)
            report = llm.kv_report()
            found = {distance: recall(llm, tokens, distance, args.rounds) for distance in args.distance}
            yield Row(spec.name, report.bytes, report.ratio, kl_mean, kl_p99, top1, ppl, found)
        print(f"{spec.name}: done", file=sys.stderr, flush=True)


def table(rows: list[Row], args: argparse.Namespace) -> str:
    distances = "".join(f" recall {distance} |" for distance in args.distance)
    lines = [
        f"{args.model.name}, context {args.ctx}, ubatch {args.ubatch}, {args.chunks} chunks; recall of "
        f"{args.rounds * N_FACTS} facts, chance 1 in {len(VALUES)}",
        "",
        f"| cache | KV MiB | ratio | mean KL | p99 KL | top-1 | perplexity |{distances}",
        "|---" * (7 + len(args.distance)) + "|",
    ]
    for row in rows:
        recalls = "".join(f" {share:.1%} |" for share in row.recall.values())
        lines.append(
            f"| {row.name} | {row.bytes / 2**20:.2f} | {row.ratio:.2f} | {row.kl_mean:.5f} | {row.kl_p99:.4f} "
            f"| {row.top1:.1%} | {row.ppl:.3f} |{recalls}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", type=Path, default=None, help="a GGUF file (default: the demo model)"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text (default: llama.cpp's docs)")
    parser.add_argument("--ctx", type=int, default=1024, metavar="N", help="tokens in a chunk (default 1024)")
    parser.add_argument("--chunks", type=int, default=4, metavar="N", help="chunks (default 4)")
    parser.add_argument("--ubatch", type=int, default=64, metavar="N", help="tokens in a ubatch (default 64)")
    parser.add_argument("--config", action="append", metavar="SPEC", help="a cache, again and again")
    parser.add_argument(
        "--distance", type=int, action="append", metavar="N", help="tokens between a fact and its question"
    )
    parser.add_argument(
        "--rounds", type=int, default=8, metavar="N", help="rounds of eight facts (default 8)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.distance = args.distance or [256, 1024]
    try:
        args.model = args.model or demo_model()
        rows = list(measure(args))
    except MiniCacheError as error:
        print(f"measure_quality: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(
            json.dumps({"model": args.model.name, "context": args.ctx, "rows": [asdict(row) for row in rows]})
        )
    else:
        print(table(rows, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
