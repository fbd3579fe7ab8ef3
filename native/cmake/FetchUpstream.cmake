# Downloads the source distribution of llama-cpp-python with pip, checks it, and keeps it in the user's cache directory.
#
# This file is also a program: cmake -P native/cmake/FetchUpstream.cmake prints the path of the checked archive.

function(minicache_cache_dir result)
    if (DEFINED ENV{XDG_CACHE_HOME} AND NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
        set(base "$ENV{XDG_CACHE_HOME}")
    elseif (CMAKE_HOST_WIN32)
        set(base "$ENV{LOCALAPPDATA}")
    elseif (CMAKE_HOST_APPLE)
        set(base "$ENV{HOME}/Library/Caches")
    else()
        set(base "$ENV{HOME}/.cache")
    endif()

    file(TO_CMAKE_PATH "${base}/minicache-cpp" base)
    set(${result} "${base}" PARENT_SCOPE)
endfunction()

function(minicache_fetch_upstream result)
    if (MINICACHE_UPSTREAM_ARCHIVE)
        minicache_check_archive("${MINICACHE_UPSTREAM_ARCHIVE}" error)
        if (error)
            message(FATAL_ERROR "MINICACHE_UPSTREAM_ARCHIVE: ${error}")
        endif()
        set(${result} "${MINICACHE_UPSTREAM_ARCHIVE}" PARENT_SCOPE)
        return()
    endif()

    set(name "llama_cpp_python-${MINICACHE_UPSTREAM_VERSION}.tar.gz")
    minicache_cache_dir(cache)

    if (EXISTS "${cache}/${name}")
        minicache_check_archive("${cache}/${name}" error)
        if (NOT error)
            set(${result} "${cache}/${name}" PARENT_SCOPE)
            return()
        endif()
        message(WARNING "${error}; fetching it again")
    endif()

    # downloaded into a folder of its own and then renamed, so that two builds at a time, or one that is stopped, leave
    # no partial file
    string(RANDOM LENGTH 8 suffix)
    set(download "${cache}/download-${suffix}")
    file(MAKE_DIRECTORY "${download}")
    minicache_pip_download("${download}" error)

    if (NOT error)
        minicache_check_archive("${download}/${name}" error)
    endif()
    if (NOT error)
        file(RENAME "${download}/${name}" "${cache}/${name}")
    endif()

    file(REMOVE_RECURSE "${download}")

    if (error)
        message(FATAL_ERROR
            "llama-cpp-python ${MINICACHE_UPSTREAM_VERSION} could not be fetched: ${error}\n"
            "Where this machine has no package index, bring ${name} along and pass its path as "
            "-DMINICACHE_UPSTREAM_ARCHIVE=PATH, or put it into ${cache}")
    endif()

    set(${result} "${cache}/${name}" PARENT_SCOPE)
endfunction()

# error is empty if this is the pinned archive
function(minicache_check_archive path error)
    set(${error} "" PARENT_SCOPE)

    if (NOT EXISTS "${path}" OR IS_DIRECTORY "${path}")
        set(${error} "${path} is not a file" PARENT_SCOPE)
        return()
    endif()

    file(SHA256 "${path}" sha256)

    if (NOT sha256 STREQUAL MINICACHE_UPSTREAM_SHA256)
        set(${error}
            "${path} has sha256 ${sha256}, expected ${MINICACHE_UPSTREAM_SHA256} (llama-cpp-python ${MINICACHE_UPSTREAM_VERSION})"
            PARENT_SCOPE)
    endif()
endfunction()

function(minicache_pip_download directory error)
    find_package(Python3 COMPONENTS Interpreter QUIET)

    if (NOT Python3_Interpreter_FOUND)
        set(${error} "no Python 3 interpreter found" PARENT_SCOPE)
        return()
    endif()

    message(STATUS "Fetching llama-cpp-python ${MINICACHE_UPSTREAM_VERSION} with pip")

    # pip asks a source distribution for its metadata before it saves it. sdist_backend answers in place of the real
    # build backend, so that nothing has to be installed, and no code of the archive runs before the archive is checked.
    set(path "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/sdist_backend")

    if (DEFINED ENV{PYTHONPATH})
        if (CMAKE_HOST_WIN32)
            string(APPEND path ";$ENV{PYTHONPATH}")
        else()
            string(APPEND path ":$ENV{PYTHONPATH}")
        endif()
    endif()

    execute_process(
        COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${path}" "MINICACHE_SDIST_VERSION=${MINICACHE_UPSTREAM_VERSION}"
                "${Python3_EXECUTABLE}" -m pip download --quiet --no-deps --no-build-isolation
                --no-binary llama-cpp-python --dest "${directory}" "llama-cpp-python==${MINICACHE_UPSTREAM_VERSION}"
        RESULT_VARIABLE status
        OUTPUT_VARIABLE output
        ERROR_VARIABLE  output)

    set(${error} "" PARENT_SCOPE)
    if (NOT status EQUAL 0)
        set(${error} "${Python3_EXECUTABLE} -m pip download ended with ${status}:\n${output}" PARENT_SCOPE)
    endif()
endfunction()

# Unpacks vendor/llama.cpp only, and moves it to its place in one step.
function(minicache_unpack_upstream archive tree)
    set(unpacked "${tree}.unpacked")

    file(REMOVE_RECURSE "${unpacked}" "${tree}")
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${unpacked}" PATTERNS "*/vendor/llama.cpp/*")
    file(GLOB source "${unpacked}/*/vendor/llama.cpp")

    if (NOT EXISTS "${source}/CMakeLists.txt")
        message(FATAL_ERROR "${archive} holds no vendor/llama.cpp")
    endif()

    # the archive was made from a checkout, and its link to a repository that is not there would confuse git
    file(REMOVE "${source}/.git")
    # these are two thirds of the bytes, and none of them is compiled
    file(REMOVE_RECURSE "${source}/models" "${source}/docs" "${source}/benches" "${source}/media")
    file(RENAME "${source}" "${tree}")
    file(REMOVE_RECURSE "${unpacked}")
endfunction()

if (CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
    include("${CMAKE_CURRENT_LIST_DIR}/UpstreamVersion.cmake")
    minicache_fetch_upstream(archive)
    execute_process(COMMAND "${CMAKE_COMMAND}" -E echo "${archive}")
endif()
