# What upstream builds. These options are set before it is added, and a -D on the command line wins over a default here.

if (NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

option(BUILD_SHARED_LIBS "build shared libraries"                ON)
option(LLAMA_OPENSSL     "llama: use openssl to support HTTPS"   OFF)

if (NOT BUILD_SHARED_LIBS)
    message(FATAL_ERROR "Python loads the libraries at run time, so BUILD_SHARED_LIBS must stay ON")
endif()

# these follow our options alone, also when they change
set(LLAMA_BUILD_TESTS ${MINICACHE_TOOLS} CACHE BOOL "follows MINICACHE_TOOLS" FORCE)

set(programs OFF)
if (MINICACHE_TOOLS OR MINICACHE_SERVER OR MINICACHE_MTMD)
    set(programs ON)
endif()
foreach (part COMMON TOOLS SERVER)
    set(LLAMA_BUILD_${part} ${programs} CACHE BOOL "follows MINICACHE_TOOLS, _SERVER and _MTMD" FORCE)
endforeach()

foreach (part EXAMPLES APP UI)
    set(LLAMA_BUILD_${part} OFF CACHE BOOL "not built here" FORCE)
endforeach()

# the server's web page would be downloaded from a model hub
set(LLAMA_USE_PREBUILT_UI OFF CACHE BOOL "not built here" FORCE)

foreach (sanitizer ADDRESS UNDEFINED THREAD)
    string(TOLOWER "${sanitizer}" name)
    set(wanted OFF)
    if (MINICACHE_SANITIZE MATCHES "(^|[;,])${name}($|[;,])")
        set(wanted ON)
    endif()
    set(LLAMA_SANITIZE_${sanitizer} ${wanted} CACHE BOOL "follows MINICACHE_SANITIZE" FORCE)
    set(GGML_SANITIZE_${sanitizer}  ${wanted} CACHE BOOL "follows MINICACHE_SANITIZE" FORCE)
endforeach()

if (MINICACHE_SANITIZE)
    # undefined behaviour ends the program, so that it is not just a line in the log; -O1 and line numbers make the
    # traces readable
    add_compile_options(-fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1)
endif()

# Upstream asks git for its own commit. Inside our repository it would find ours, and every commit of ours would compile
# parts of it again.
set(ENV{GIT_CEILING_DIRECTORIES} "${CMAKE_BINARY_DIR}")
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT "${MINICACHE_UPSTREAM_COMMIT}")

# Libraries look for each other in their own directory, in the build and in the wheel.
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
if (APPLE)
    set(CMAKE_INSTALL_RPATH "@loader_path")
    set(CMAKE_MACOSX_RPATH ON)
else()
    set(CMAKE_INSTALL_RPATH "$ORIGIN")
endif()
