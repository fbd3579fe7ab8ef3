# Our sources, by the upstream target they are linked into. Paths are relative to this file.

set(MINICACHE_GGML_BASE_SOURCES
    ggml-minicache.h
    ggml-minicache.cpp
    minicache-code.h)

set(MINICACHE_GGML_CPU_SOURCES
    cpu/minicache-cpu.h
    cpu/minicache-cpu.cpp
    cpu/minicache-cpu-index.cpp
    cpu/minicache-cpu-merge.cpp
    cpu/minicache-cpu-retain.cpp
    cpu/minicache-cpu-attn.h
    cpu/minicache-cpu-attn.cpp
    cpu/minicache-cpu-attn-ref.cpp
    cpu/minicache-cpu-code.h
    cpu/minicache-cpu-code.cpp
    cpu/minicache-cpu-encode.h
    cpu/minicache-cpu-encode.cpp
    cpu/minicache-cpu-encode-ref.cpp
    cpu/minicache-cpu-rows.h
    cpu/minicache-cpu-rows.cpp
    cpu/minicache-cpu-simd.h
    minicache-code.h
    minicache-math.h)

set(MINICACHE_LLAMA_SOURCES
    llama-minicache.h
    llama-minicache.cpp
    llama-minicache-kernels.cpp
    llama-minicache-error.h
    llama-minicache-error.cpp
    llama-minicache-params.h
    llama-minicache-params.cpp
    llama-minicache-plan.h
    llama-minicache-plan.cpp
    llama-minicache-pairs.h
    llama-minicache-pairs.cpp
    llama-minicache-report.cpp
    llama-kv-cache-minicache.h
    llama-kv-cache-minicache.cpp
    llama-kv-cache-minicache-state.cpp
    llama-minicache-rope.h
    llama-minicache-rope.cpp
    minicache-hash.h
    llama-graph-minicache.h
    llama-graph-minicache.cpp)
