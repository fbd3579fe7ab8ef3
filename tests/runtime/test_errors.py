"""Where llama.cpp would end the process, an exception is raised. The context stays unusable, and others go on."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError
from minicache_cpp.native import binding
from minicache_cpp.native.binding import llama_h

SETTINGS = {"n_ctx": 256, "n_batch": 32, "verbose": False, "n_threads": 1, "n_threads_batch": 1}
TOKENS = list(range(3, 43))
ASSERTION = r"llama-context\.cpp:\d+: GGML_ASSERT\(n_tokens_all <= cparams\.n_batch\) failed"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="calls are not guarded in MSVC builds")


def too_large(llm: Llama) -> None:
    """Decodes a batch of more tokens than n_batch, which fails an assertion of llama.cpp."""
    from llama_cpp import _internals

    batch = _internals.LlamaBatch(n_tokens=len(TOKENS), embd=0, n_seq_max=1, verbose=False)
    batch.set_batch(batch=TOKENS, n_past=llm.n_tokens, logits_all=False)
    llm._ctx.decode(batch)


@pytest.fixture(params=[None, MiniCache()], ids=["plain", "merged"])
def llm(request: pytest.FixtureRequest, path: str) -> Llama:
    return Llama(path, minicache=request.param, **SETTINGS)


def test_assertion_is_an_exception(llm: Llama, path: str) -> None:
    with Llama(path, minicache=llm.minicache, **SETTINGS) as other:
        llm.eval(TOKENS[:8])
        other.eval(TOKENS[:8])
        with pytest.raises(MiniCacheError, match=f"{ASSERTION}; the context cannot be used any more"):
            too_large(llm)
        for _ in range(2):
            with pytest.raises(MiniCacheError, match=f"failed earlier .* make a new one: .*{ASSERTION}"):
                llm.eval(TOKENS[:8])
        for call in (llm.save_state, llm._ctx.kv_cache_clear, lambda: llm.load_state(other.save_state())):
            with pytest.raises(MiniCacheError, match="failed earlier"):
                call()
        other.eval(TOKENS[8:16])
        seen = np.array(other._ctx.get_logits()[: other.n_vocab()])
    llm.close()
    llm.close()
    with pytest.raises(MiniCacheError, match="closed"):
        llm.kv_report()

    # the new context may have the address of the failed one
    with Llama(path, minicache=llm.minicache, **SETTINGS) as again:
        again.eval(TOKENS[:8])
        again.eval(TOKENS[8:16])
        np.testing.assert_array_equal(again._ctx.get_logits()[: again.n_vocab()], seen)


def test_each_thread_has_its_own(llm: Llama) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            too_large(llm)
        except MiniCacheError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1
    with pytest.raises(MiniCacheError, match="failed earlier"):
        llm.eval(TOKENS[:8])
    llm.close()


def test_a_failed_device_keeps_its_models(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is freed at which ggml-cuda would end the process."""
    free_context, free_model = binding.free_context, llama_h.llama_model_free
    freed: list[object] = []
    monkeypatch.setattr(binding, "free_context", lambda ctx: False)
    monkeypatch.setattr(llama_h, "llama_model_free", freed.append)
    ctx, model = llm._ctx.ctx, llm._model.model
    llm.close()
    assert freed == []
    assert free_context(ctx)

    monkeypatch.setattr(binding, "_kept", [ctx])
    binding.free_model(model)
    assert freed == []
    monkeypatch.setattr(binding, "_kept", [])
    binding.free_model(model)
    assert freed == [model]
    free_model(model)


@pytest.mark.parametrize("callback", [False, True])
def test_unguarded_calls_still_end_the_process(path: str, callback: bool) -> None:
    """llama_decode() is not guarded, nor is any decode during which an evaluation callback may be called."""
    script = f"""
import ctypes
from minicache_cpp.native import binding
from minicache_cpp.native.binding import llama_h
tokens = {TOKENS}
model = llama_h.llama_model_load_from_file({path.encode()!r}, llama_h.llama_model_default_params())
params = llama_h.llama_context_default_params()
params.n_ctx, params.n_batch = 256, 32
callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(lambda *_: False)
if {callback}:
    params.cb_eval = ctypes.cast(callback, type(params.cb_eval))
ctx = llama_h.llama_init_from_model(model, params)
batch = llama_h.llama_batch_init(len(tokens), 0, 1)
batch.n_tokens = len(tokens)
for i, token in enumerate(tokens):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, False
print("ready", flush=True)
(binding if {callback} else llama_h).{"decode" if callback else "llama_decode"}(ctx, batch)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert "ready" in done.stdout
    assert done.returncode == -6
    assert "GGML_ASSERT(n_tokens_all <= cparams.n_batch) failed" in done.stderr


@pytest.mark.parametrize("minicache", [None, MiniCache(), MiniCache(type_k="q4_0", type_v="q4_0")])
def test_context_beyond_memory_is_refused(path: str, minicache: MiniCache | None) -> None:
    """It is refused before anything is allocated; even the cells alone, without K and V, would not fit."""
    asked = "a context of 2,000,000,000 tokens needs [0-9,]{7,} MiB, and only [0-9,]+ MiB of memory is free"
    with pytest.raises(MiniCacheError, match=asked):
        Llama(path, minicache=minicache, **{**SETTINGS, "n_ctx": 2_000_000_000})
    with Llama(path, minicache=minicache, **SETTINGS) as llm:
        llm.eval(TOKENS[:8])


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space needs Linux")
@pytest.mark.parametrize("minicache", ["None", "MiniCache()"])
def test_failed_allocation_names_asked_and_free(path: str, minicache: str) -> None:
    """Where nothing is refused in advance, as with a GPU, whose allocations fail only when they are made."""
    script = f"""
import resource
from minicache_cpp import Llama, MiniCache, MiniCacheError
from minicache_cpp.host import memory as host_memory
known, host_memory.available_bytes = host_memory.available_bytes, lambda: None
Llama({path!r}, minicache={minicache}, **{SETTINGS}).close()
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
try:
    memory = Llama({path!r}, minicache={minicache}, **{ {**SETTINGS, "n_ctx": 2_000_000_000} })
except MiniCacheError as error:
    print(error)
Llama({path!r}, minicache={minicache}, **{SETTINGS}).eval({TOKENS[:8]})
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    message, after = done.stdout.splitlines()[-2:]
    assert after == "went on", done.stderr
    assert message.startswith("Failed to create llama_context: ")
    assert re.search(r"the KV cache of 2,000,000,000 tokens takes [0-9,]+ MiB; .* are free", message)
    if minicache != "None":
        assert "failed to allocate the 2000000000 cells of the KV cache in main memory" in message
