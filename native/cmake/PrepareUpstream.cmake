# Fetches, unpacks and patches the upstream tree, unless that has been done already.

include(FetchUpstream)
include(ApplyPatches)

function(minicache_prepare_upstream tree)
    set(patches "")

    if (MINICACHE_PATCH)
        file(GLOB patches CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/patches/*.patch")
        list(SORT patches)
        # so that the next build applies an edited patch, as it compiles an edited source
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${patches})
    endif()

    minicache_patches_key(key "${patches}")
    minicache_applied_key(applied "${tree}")

    if (key STREQUAL applied)
        return()
    endif()

    minicache_fetch_upstream(archive)

    if (NOT EXISTS "${tree}/CMakeLists.txt")
        message(STATUS "Unpacking llama.cpp ${MINICACHE_UPSTREAM_COMMIT}")
        minicache_unpack_upstream("${archive}" "${tree}")
    endif()

    minicache_apply_patches("${archive}" "${tree}" "${patches}")
endfunction()
