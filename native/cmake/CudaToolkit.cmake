# Names what a build with GGML_CUDA lacks before anything is compiled. Upstream only says that the toolkit was not found.

function(minicache_check_cuda_toolkit)
    find_package(CUDAToolkit QUIET)

    set(missing "")
    if (NOT CUDAToolkit_NVCC_EXECUTABLE AND NOT CMAKE_CUDA_COMPILER)
        list(APPEND missing "nvcc")
    endif()
    if (CUDAToolkit_FOUND AND NOT TARGET CUDA::cudart)
        list(APPEND missing "the CUDA runtime (libcudart)")
    endif()
    if (CUDAToolkit_FOUND AND NOT TARGET CUDA::cublas)
        list(APPEND missing "cuBLAS (libcublas and cublas_v2.h)")
    endif()
    if (NOT CUDAToolkit_FOUND AND NOT missing)
        list(APPEND missing "the toolkit's headers and libraries")
    endif()

    if (missing)
        string(REPLACE ";" ", " missing "${missing}")
        message(FATAL_ERROR
            "GGML_CUDA is on, but parts of the CUDA toolkit are missing: ${missing}. Install them, or say where it is with "
            "-DCUDAToolkit_ROOT=/usr/local/cuda and -DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc in CMAKE_ARGS; without "
            "-DGGML_CUDA=on the libraries are built for the CPU.")
    endif()
    message(STATUS "CUDA toolkit ${CUDAToolkit_VERSION} in ${CUDAToolkit_BIN_DIR}")
endfunction()
