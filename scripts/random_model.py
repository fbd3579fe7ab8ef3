#!/usr/bin/env python3
"""Write a GGUF model of a known shape with random weights, to measure speed, which does not depend on their values.

    python3 scripts/random_model.py llama-3-8b -o random-8b.gguf
    python3 scripts/random_model.py llama-3-8b --layers 4 --vocab 16032 -o random-8b-4.gguf    # fits a small machine

The second has an eighth of the layers and of the vocabulary, so that attention, the layers' matrices and the output
matrix have the same shares of a token's time as in the whole model; with the whole vocabulary, the output matrix would
count eight times as much.

Weights are q4_0. There is no tokenizer, so programs pass token numbers. The same shape gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gguf
import numpy as np

BLOCK = 32  # numbers in a block of q4_0: an f16 scale, then 16 bytes


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx: int
    rope_base: float


SHAPES = {
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000, 4096, 10000.0),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128256, 131072, 500000.0),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, 8192, 100000.0),
    "tiny": Shape(4, 256, 512, 4, 2, 512, 4096, 10000.0),  # for trying the scripts
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer layers than the shape has")
    parser.add_argument("--vocab", type=int, metavar="N", help="fewer tokens than the shape has")
    args = parser.parse_args(argv)
    shape = SHAPES[args.shape]
    if args.layers is not None:
        if not 1 <= args.layers <= shape.n_layer:
            parser.error(f"--layers {args.layers}: {args.shape} has 1 to {shape.n_layer}")
        shape = replace(shape, n_layer=args.layers)
    if args.vocab is not None:
        if not BLOCK <= args.vocab <= shape.n_vocab:
            parser.error(f"--vocab {args.vocab}: {args.shape} has {BLOCK} to {shape.n_vocab}")
        shape = replace(shape, n_vocab=args.vocab)
    write(args.shape, shape, args.output)
    return 0


def write(name: str, s: Shape, path: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"{name} with random weights")
    writer.add_context_length(s.n_ctx)
    writer.add_embedding_length(s.n_embd)
    writer.add_block_count(s.n_layer)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_rope_dimension_count(s.n_embd // s.n_head)
    writer.add_vocab_size(s.n_vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    rng = np.random.default_rng(1)
    n_kv = s.n_embd // s.n_head * s.n_head_kv
    norm = np.ones(s.n_embd, np.float32)

    def add(tensor: str, rows: int, columns: int) -> None:
        writer.add_tensor(tensor, random_q4_0(rng, rows, columns), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    add("token_embd.weight", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", norm)
        add(f"blk.{i}.attn_q.weight", s.n_embd, s.n_embd)
        add(f"blk.{i}.attn_k.weight", n_kv, s.n_embd)
        add(f"blk.{i}.attn_v.weight", n_kv, s.n_embd)
        add(f"blk.{i}.attn_output.weight", s.n_embd, s.n_embd)
        add(f"blk.{i}.ffn_gate.weight", s.n_ff, s.n_embd)
        add(f"blk.{i}.ffn_up.weight", s.n_ff, s.n_embd)
        add(f"blk.{i}.ffn_down.weight", s.n_embd, s.n_ff)
    writer.add_tensor("output_norm.weight", norm)
    add("output.weight", s.n_vocab, s.n_embd)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_q4_0(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random levels with one scale, chosen so that a product with the matrix is about as long as its factor."""
    n = rows * columns // BLOCK
    blocks = np.empty((n, 2 + BLOCK // 2), np.uint8)
    # levels -8..7 have a mean square of about 21.5
    blocks[:, :2] = np.frombuffer(np.float16(1 / np.sqrt(21.5 * columns)).tobytes(), np.uint8)
    blocks[:, 2:] = rng.integers(0, 256, (n, BLOCK // 2), np.uint8)
    return blocks.reshape(rows, columns // BLOCK * blocks.shape[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
