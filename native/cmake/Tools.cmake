# Those of upstream's programs that are useful with MiniCache, and two of its tests, from the tree that we build.

set(MINICACHE_TOOL_TARGETS
    llama-bench
    llama-batched-bench
    llama-cli
    llama-completion
    llama-perplexity
    llama-quantize
    llama-server
    test-backend-ops
    test-save-load-state)

function(minicache_add_tools)
    add_custom_target(minicache-tools ALL DEPENDS ${MINICACHE_TOOL_TARGETS})
endfunction()
