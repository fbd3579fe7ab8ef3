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

# llama-server and the libraries of its own. Only it is asked for, so that nothing else of upstream's tools is compiled.
function(minicache_server_targets result)
    set(libraries llama-server-impl llama-common mtmd)
    minicache_unversion("${libraries}")
    set(${result} llama-server ${libraries} PARENT_SCOPE)
endfunction()
