# Applies patches/*.patch to the unpacked upstream tree.
#
# Nothing is patched in place. The files that the patches touch are unpacked once more beside the tree, the patches are
# applied there, and only if all of them fit are the results copied over. So a patch that does not fit leaves the tree
# unchanged, applying twice is the same as applying once, an edited or removed patch needs no undoing, and only files
# that really changed are compiled again.
#
# The file .minicache-patches in the tree holds the key of what was applied, and the names of the patched files.

# a key of the patches' names and contents, in order
function(minicache_patches_key result patches)
    set(key "patches")
    foreach (patch IN LISTS patches)
        get_filename_component(name "${patch}" NAME)
        file(SHA256 "${patch}" sha256)
        string(APPEND key " ${name}:${sha256}")
    endforeach()
    set(${result} "${key}" PARENT_SCOPE)
endfunction()

function(minicache_applied_key result tree)
    set(lines "")
    if (EXISTS "${tree}/.minicache-patches")
        file(STRINGS "${tree}/.minicache-patches" lines LIMIT_COUNT 1)
    endif()
    set(${result} "${lines}" PARENT_SCOPE)
endfunction()

function(minicache_apply_patches archive tree patches)
    find_program(GIT_EXECUTABLE NAMES git)

    if (patches AND NOT GIT_EXECUTABLE)
        message(FATAL_ERROR "git is needed to apply native/patches; install it, or build the stock library with -DMINICACHE_PATCH=OFF")
    endif()

    minicache_patched_files(files "${patches}")

    set(stale "") # the files that an earlier set of patches touched
    if (EXISTS "${tree}/.minicache-patches")
        file(STRINGS "${tree}/.minicache-patches" stale)
        list(POP_FRONT stale)
    endif()

    set(touched ${files} ${stale})
    list(REMOVE_DUPLICATES touched)

    set(stage "${tree}.stage")
    minicache_unpack_files("${archive}" "${stage}" "${touched}")

    foreach (patch IN LISTS patches)
        get_filename_component(name "${patch}" NAME)
        message(STATUS "Applying ${name}")
        minicache_git_apply(error "${stage}" "${patch}")
        if (error)
            file(REMOVE_RECURSE "${stage}")
            message(FATAL_ERROR "${error}")
        endif()
    endforeach()

    foreach (file IN LISTS touched)
        if (EXISTS "${stage}/${file}")
            get_filename_component(directory "${tree}/${file}" DIRECTORY)
            file(MAKE_DIRECTORY "${directory}")
            file(COPY_FILE "${stage}/${file}" "${tree}/${file}" ONLY_IF_DIFFERENT)
        else()
            file(REMOVE "${tree}/${file}")
        endif()
    endforeach()

    minicache_patches_key(key "${patches}")
    list(JOIN files "\n" names)
    file(WRITE "${tree}/.minicache-patches" "${key}\n${names}\n")
    file(REMOVE_RECURSE "${stage}")
endfunction()

function(minicache_patched_files result patches)
    set(files "")
    foreach (patch IN LISTS patches)
        # the +++ lines would not do: a hunk may contain such a line
        file(STRINGS "${patch}" headers REGEX "^diff --git a/[^ ]+ b/[^ ]+$")
        if (NOT headers)
            message(FATAL_ERROR "${patch} has no \"diff --git a/FILE b/FILE\" line; write patches with scripts/renew_patches.py")
        endif()
        foreach (header IN LISTS headers)
            string(REGEX REPLACE "^diff --git a/[^ ]+ b/" "" file "${header}")
            list(APPEND files "${file}")
        endforeach()
    endforeach()
    list(REMOVE_DUPLICATES files)
    set(${result} "${files}" PARENT_SCOPE)
endfunction()

# Unpacks the pristine files into an empty stage. Files that a patch creates are not in the archive.
function(minicache_unpack_files archive stage files)
    file(REMOVE_RECURSE "${stage}")
    file(MAKE_DIRECTORY "${stage}")

    execute_process(COMMAND "${CMAKE_COMMAND}" -E tar tf "${archive}" OUTPUT_VARIABLE content)

    set(patterns "")
    foreach (file IN LISTS files)
        string(FIND "${content}" "/vendor/llama.cpp/${file}\n" at)
        if (NOT at EQUAL -1)
            list(APPEND patterns "*/vendor/llama.cpp/${file}")
        endif()
    endforeach()

    if (NOT patterns)
        return()
    endif()

    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${stage}.unpacked" PATTERNS ${patterns})
    file(GLOB source "${stage}.unpacked/*/vendor/llama.cpp")

    if (source)
        file(REMOVE_RECURSE "${stage}")
        file(RENAME "${source}" "${stage}")
    endif()

    file(REMOVE_RECURSE "${stage}.unpacked")
endfunction()

# error is empty if the patch fits
function(minicache_git_apply error directory patch)
    get_filename_component(above "${directory}" DIRECTORY)

    # Inside another repository git would read the paths as that repository's and skip everything outside it, so it must
    # not look for one. The user's settings for line ends and white space must not have an effect either.
    set(git "${CMAKE_COMMAND}" -E env --unset=GIT_DIR --unset=GIT_WORK_TREE --unset=GIT_INDEX_FILE
            "GIT_CEILING_DIRECTORIES=${above}" LC_ALL=C
            "${GIT_EXECUTABLE}" -c core.autocrlf=false -c apply.whitespace=nowarn -c apply.ignoreWhitespace=no)

    execute_process(
        COMMAND ${git} apply "${patch}"
        WORKING_DIRECTORY "${directory}"
        RESULT_VARIABLE   status
        OUTPUT_VARIABLE   output
        ERROR_VARIABLE    output)

    set(${error} "" PARENT_SCOPE)
    if (status EQUAL 0)
        return()
    endif()

    # applied again for the numbers of the hunks that do not fit; the stage is deleted anyway
    execute_process(
        COMMAND ${git} apply --reject --verbose "${patch}"
        WORKING_DIRECTORY "${directory}"
        OUTPUT_VARIABLE   details
        ERROR_VARIABLE    details)

    minicache_rejected_hunks(hunks "${details}")
    if (hunks STREQUAL "")
        set(hunks "    ${output}")
    endif()

    get_filename_component(name "${patch}" NAME)
    string(CONCAT message
        "native/patches/${name} does not fit llama-cpp-python ${MINICACHE_UPSTREAM_VERSION} (llama.cpp ${MINICACHE_UPSTREAM_COMMIT}):\n"
        "${hunks}\n"
        "Nothing was changed. Renew the patch with\n"
        "    python3 scripts/renew_patches.py checkout DIR\n"
        "which stops at it, with the rejected hunks beside their files, and says how to go on.")
    set(${error} "${message}" PARENT_SCOPE)
endfunction()

# Makes one line for each hunk that git's report says was rejected, and for each file that is missing.
function(minicache_rejected_hunks result details)
    string(REGEX REPLACE "[][;]" "_" details "${details}") # these have a meaning in a CMake list
    string(REPLACE "\n" ";" lines "${details}")

    set(file "")
    set(hunks "")
    foreach (line IN LISTS lines)
        if (line MATCHES "^Applying patch (.+) with [0-9]+ rejects?\\.\\.\\.$")
            set(file "${CMAKE_MATCH_1}")
        elseif (line MATCHES "^Rejected hunk #([0-9]+)\\.$")
            list(APPEND hunks "    ${file}: hunk ${CMAKE_MATCH_1}")
        elseif (line MATCHES "^error: (.+): (No such file or directory|already exists in working directory)$")
            list(APPEND hunks "    ${CMAKE_MATCH_1}: ${CMAKE_MATCH_2}")
        endif()
    endforeach()

    list(JOIN hunks "\n" text)
    set(${result} "${text}" PARENT_SCOPE)
endfunction()

# This file is also a program, for the tests and renew_patches.py:
#   cmake -DARCHIVE=FILE -DTREE=DIR -DPATCHES=DIR [-DVERSION=NAME] -P native/cmake/ApplyPatches.cmake
if (CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
    cmake_policy(VERSION 3.21)
    include("${CMAKE_CURRENT_LIST_DIR}/UpstreamVersion.cmake")
    include("${CMAKE_CURRENT_LIST_DIR}/FetchUpstream.cmake")
    if (VERSION)
        set(MINICACHE_UPSTREAM_VERSION "${VERSION}")
        set(MINICACHE_UPSTREAM_COMMIT  "of that release")
    endif()
    file(GLOB patches "${PATCHES}/*.patch")
    list(SORT patches)
    if (NOT EXISTS "${TREE}/CMakeLists.txt")
        minicache_unpack_upstream("${ARCHIVE}" "${TREE}")
    endif()
    minicache_apply_patches("${ARCHIVE}" "${TREE}" "${patches}")
endif()
