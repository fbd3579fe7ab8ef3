# Adds our sources to upstream's targets, without copying them.

set(MINICACHE_SOURCE_DIR "${CMAKE_CURRENT_SOURCE_DIR}/ggml_minicache")

include("${MINICACHE_SOURCE_DIR}/sources.cmake" OPTIONAL)

function(minicache_add_sources libraries)
    foreach (library IN LISTS libraries)
        if (library STREQUAL "llama")
            minicache_link_sources(${library} "${MINICACHE_LLAMA_SOURCES}")
        elseif (library STREQUAL "ggml-base")
            minicache_link_sources(${library} "${MINICACHE_GGML_BASE_SOURCES}")
            minicache_unwind_through_c(${library})
        elseif (library STREQUAL "ggml")
            minicache_link_sources(${library} "${MINICACHE_GGML_SOURCES}")
        elseif (library STREQUAL "ggml-cuda")
            minicache_link_sources(${library} "${MINICACHE_GGML_CUDA_SOURCES}")
            minicache_set_cuda_options(${library})
        elseif (library STREQUAL "ggml-hip" OR library STREQUAL "ggml-musa")
            # these are built from ggml-cuda's files, without our kernels, as minicache-cuda.cuh arranges
            target_include_directories(${library} PRIVATE "${MINICACHE_SOURCE_DIR}/op" "${MINICACHE_SOURCE_DIR}/cuda")
        elseif (library MATCHES "^ggml-cpu($|-)")
            # with GGML_CPU_ALL_VARIANTS there is a library for each instruction set, and each compiles them with its
            # own flags
            minicache_link_sources(${library} "${MINICACHE_GGML_CPU_SOURCES}")
        endif()
    endforeach()
endfunction()

function(minicache_link_sources target sources)
    target_include_directories(${target} PRIVATE "${MINICACHE_SOURCE_DIR}/op")

    if (NOT sources)
        return()
    endif()

    list(TRANSFORM sources PREPEND "${MINICACHE_SOURCE_DIR}/")

    foreach (source IN LISTS sources)
        get_filename_component(directory "${source}" DIRECTORY)
        target_include_directories(${target} PRIVATE "${directory}") # repeated names count once
    endforeach()

    target_sources(${target} PRIVATE ${sources})
    # upstream compiles its many model files in batches, which our files are not written for
    set_source_files_properties(${sources} TARGET_DIRECTORY ${target} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# Exceptions of llama-minicache-guard.h pass through these files of C.
function(minicache_unwind_through_c target)
    if (CMAKE_C_COMPILER_ID MATCHES "GNU|Clang" AND NOT MSVC)
        set_source_files_properties(
            "${MINICACHE_UPSTREAM_DIR}/ggml/src/ggml.c"
            "${MINICACHE_UPSTREAM_DIR}/ggml/src/ggml-alloc.c"
            TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS -fexceptions)
    endif()
endfunction()

# Upstream compiles with -use_fast_math. For our kernels those parts of it are switched off that would lose the smallest
# numbers or change which of two distances is larger.
set(MINICACHE_CUDA_OPTIONS -ftz=false -prec-div=true -prec-sqrt=true)

function(minicache_set_cuda_options target)
    target_include_directories(${target} PRIVATE "${MINICACHE_UPSTREAM_DIR}/ggml/src/ggml-cuda")

    set(kernels ${MINICACHE_GGML_CUDA_SOURCES})
    list(FILTER kernels INCLUDE REGEX "\\.cu$")
    list(TRANSFORM kernels PREPEND "${MINICACHE_SOURCE_DIR}/")
    set_source_files_properties(${kernels} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS "${MINICACHE_CUDA_OPTIONS}")
endfunction()

# Compiles the CUDA kernels as C++ that runs in fibers (tests/native/cuda-on-cpu), for minicache-test and as a backend for
# ggml_backend_load(). Not in a CUDA build, whose library has functions of the same names.
function(minicache_add_cuda_on_cpu target)
    if (GGML_CUDA OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
        add_custom_target(minicache-cuda-on-cpu)
        return()
    endif()

    set(directory "${CMAKE_CURRENT_SOURCE_DIR}/../tests/native/cuda-on-cpu")
    file(GLOB sources CONFIGURE_DEPENDS "${directory}/*.cpp")

    set(kernels ${MINICACHE_GGML_CUDA_SOURCES})
    list(FILTER kernels INCLUDE REGEX "\\.cu$")
    list(TRANSFORM kernels PREPEND "${MINICACHE_SOURCE_DIR}/")
    set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")

    add_library(minicache-cuda-on-cpu-objects OBJECT ${sources} ${kernels})
    set_target_properties(minicache-cuda-on-cpu-objects PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_compile_features(minicache-cuda-on-cpu-objects PUBLIC cxx_std_17)
    target_compile_definitions(minicache-cuda-on-cpu-objects INTERFACE MINICACHE_CUDA_ON_CPU)
    target_link_libraries(minicache-cuda-on-cpu-objects PRIVATE ggml)
    # first, because these files have the names of ggml-cuda's
    target_include_directories(minicache-cuda-on-cpu-objects BEFORE PRIVATE
        "${directory}"
        "${MINICACHE_SOURCE_DIR}/op"
        "${MINICACHE_SOURCE_DIR}/cuda"
        "${MINICACHE_UPSTREAM_DIR}/ggml/src")
    minicache_sanitize(minicache-cuda-on-cpu-objects)
    target_link_libraries(${target} PRIVATE minicache-cuda-on-cpu-objects)

    add_library(minicache-cuda-on-cpu MODULE EXCLUDE_FROM_ALL)
    target_link_libraries(minicache-cuda-on-cpu PRIVATE minicache-cuda-on-cpu-objects ggml)
    set_target_properties(minicache-cuda-on-cpu PROPERTIES
        LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
endfunction()

# minicache-test needs ggml only, so that a build with sanitizers need not compile all of llama.cpp's models.
function(minicache_add_native_tests)
    set(directory "${CMAKE_CURRENT_SOURCE_DIR}/../tests/native")
    file(GLOB sources CONFIGURE_DEPENDS "${directory}/*.cpp" "${directory}/op/*.cpp" "${directory}/llama/*.cpp")

    set(llama_sources llama-minicache-guard.cpp llama-minicache-packing.cpp llama-minicache-rans.cpp)

    if (NOT sources)
        message(FATAL_ERROR "MINICACHE_TESTS: tests/native holds no sources")
    endif()

    # these of libllama's sources need ggml only, too
    list(TRANSFORM llama_sources PREPEND "${MINICACHE_SOURCE_DIR}/llama/")
    add_executable(minicache-test ${sources} ${llama_sources})
    target_compile_features(minicache-test PRIVATE cxx_std_17)
    find_package(Threads REQUIRED)  # for measuring the speed of memory
    minicache_add_cuda_on_cpu(minicache-test)
    target_link_libraries(minicache-test PRIVATE ggml Threads::Threads)
    target_include_directories(minicache-test PRIVATE
        "${directory}"
        "${MINICACHE_SOURCE_DIR}/op"
        "${MINICACHE_SOURCE_DIR}/cpu"
        "${MINICACHE_SOURCE_DIR}/cuda"
        "${MINICACHE_SOURCE_DIR}/llama"
        "${MINICACHE_UPSTREAM_DIR}/ggml/src"
        "${MINICACHE_UPSTREAM_DIR}/ggml/src/ggml-cpu")
    set_target_properties(minicache-test PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

    add_executable(minicache-bench-kernels "${directory}/bench/bench-kernels.cpp")
    target_compile_features(minicache-bench-kernels PRIVATE cxx_std_17)
    target_link_libraries(minicache-bench-kernels PRIVATE ggml)
    target_include_directories(minicache-bench-kernels PRIVATE "${MINICACHE_SOURCE_DIR}/op")
    set_target_properties(minicache-bench-kernels PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin" EXCLUDE_FROM_ALL ON)

    minicache_sanitize(minicache-test)

    # whole models in threads: with -DMINICACHE_SANITIZE=thread, all of libllama is compiled for it
    add_executable(minicache-threads "${directory}/threads/threads.cpp")
    target_compile_features(minicache-threads PRIVATE cxx_std_17)
    target_link_libraries(minicache-threads PRIVATE llama Threads::Threads)
    target_include_directories(minicache-threads PRIVATE "${MINICACHE_SOURCE_DIR}/llama")
    set_target_properties(minicache-threads PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin" EXCLUDE_FROM_ALL ON)
    minicache_sanitize(minicache-threads)
endfunction()

# Adds the sanitizers of MINICACHE_SANITIZE, as for upstream's own targets.
function(minicache_sanitize target)
    foreach (sanitizer ADDRESS UNDEFINED THREAD)
        if (GGML_SANITIZE_${sanitizer})
            string(TOLOWER "${sanitizer}" name)
            target_compile_options(${target} PRIVATE -fsanitize=${name})
            target_link_options(${target} PRIVATE -fsanitize=${name})
        endif()
    endforeach()
endfunction()
