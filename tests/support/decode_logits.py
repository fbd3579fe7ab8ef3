"""Decodes a prompt and its greedy continuation with the llama library in LLAMA_CPP_LIB_PATH, and saves all logits.

    python decode_logits.py MODEL OUT.npy N_PROMPT N_DECODE TYPE

This is a program of its own because a process can load only one llama library. It does not use MiniCache.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}


def main(path: str, out: str, n_prompt: int, n_decode: int, kind: str) -> int:
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 48
    params.type_k = params.type_v = TYPES[kind]
    params.flash_attn_type = 1
    params.n_threads = params.n_threads_batch = 1
    ctx = llama_cpp.llama_init_from_model(model, params)
    if ctx is None:
        print("no context")
        return 1

    tokens = np.random.default_rng(1).integers(3, n_vocab, n_prompt).tolist()
    logits = []
    for step in range(1 + n_decode):
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = i if step == 0 else n_prompt + step - 1
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = True
        assert llama_cpp.llama_decode(ctx, batch) == 0
        rows = np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), (len(tokens), n_vocab)).copy()
        llama_cpp.llama_batch_free(batch)
        logits.append(rows)
        tokens = [int(rows[-1].argmax())]
    np.save(Path(out), np.concatenate(logits))
    return 0


@llama_cpp.llama_log_callback
def log_warnings(level: int, text: bytes, _: object) -> None:
    if level >= 3:
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    llama_cpp.llama_log_set(log_warnings, ctypes.c_void_p(0))
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
