# Whether the compiler can be trusted with AMX, whose tiles ggml multiplies quantized matrices with on Intel's servers.
#
# GCC up to 12.3 and 13.2 (bug 114098) does not know that an instruction reads the tiles' configuration and drops the
# stores to it as dead, so that the first product of a prompt ends the process. Processors with AMX then get the
# kernels for AVX-512.

function(minicache_amx_works result)
    set(stores "${CMAKE_BINARY_DIR}/amx-stores.cpp")
    # where the store is not dropped, its number is in the object file, and reads as a word there
    set(word "tilesAMX")
    file(WRITE "${stores}" "
        #include <immintrin.h>
        #include <stdint.h>
        struct alignas(64) config { uint64_t words[8]; };
        void load() {
            config c = {};
            c.words[0] = 1;
            c.words[6] = 0x584d4173656c6974;
            _tile_loadconfig(&c);
        }")

    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    try_compile(compiles "${CMAKE_BINARY_DIR}" "${stores}"
        COMPILE_DEFINITIONS -O2 -mamx-tile
        COPY_FILE "${stores}.a")

    # a compiler that does not know AMX leaves it out by itself
    set(found "yes")
    if (compiles)
        file(STRINGS "${stores}.a" found REGEX "${word}")
    endif()
    if (found)
        set(${result} ON PARENT_SCOPE)
    else()
        set(${result} OFF PARENT_SCOPE)
    endif()
endfunction()

# Compiles these libraries without AMX where the compiler cannot be trusted with it.
function(minicache_drop_broken_amx libraries)
    if (NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        return()
    endif()

    minicache_amx_works(works)
    if (works)
        return()
    endif()

    message(STATUS "AMX is left out: ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} drops stores that it reads")
    foreach (library IN LISTS libraries)
        if (library MATCHES "^ggml-cpu($|-)")
            target_compile_options(${library} PRIVATE -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
        endif()
    endforeach()
endfunction()
