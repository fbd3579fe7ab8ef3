# Which libraries are built, where they are installed, and what else goes into the wheel.

# llama, ggml, and every ggml backend that the options switch on
function(minicache_library_targets result)
    minicache_targets_below(targets "${MINICACHE_UPSTREAM_DIR}/ggml")

    set(libraries llama)
    foreach (target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        if (target MATCHES "^ggml($|-)" AND type MATCHES "^(SHARED|MODULE)_LIBRARY$")
            list(APPEND libraries ${target})
        endif()
    endforeach()

    minicache_unversion("${libraries}")

    set(${result} ${libraries} PARENT_SCOPE)
endfunction()

# One file for each library, without a version in its name: a wheel cannot hold links, and would contain three copies of
# each. The names inside the libraries follow the files'.
function(minicache_unversion libraries)
    foreach (library IN LISTS libraries)
        set_property(TARGET ${library} PROPERTY VERSION)
        set_property(TARGET ${library} PROPERTY SOVERSION)
        set_property(TARGET ${library} PROPERTY PUBLIC_HEADER)
        set_property(TARGET ${library} PROPERTY PRIVATE_HEADER)
    endforeach()
endfunction()

function(minicache_targets_below result directory)
    get_property(targets     DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
    get_property(directories DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)

    foreach (below IN LISTS directories)
        minicache_targets_below(more "${below}")
        list(APPEND targets ${more})
    endforeach()

    set(${result} ${targets} PARENT_SCOPE)
endfunction()

# The wheel gets the libraries with their licence, llama-server, the table of models and the plans that ship, and nothing
# else.
set(MINICACHE_WHEEL_DIR "${SKBUILD_PLATLIB_DIR}/minicache_cpp/lib")

# where python/minicache_cpp/models/table.py looks for them
function(minicache_install_models)
    set(models "${CMAKE_CURRENT_SOURCE_DIR}/../models")
    set(data   "${SKBUILD_PLATLIB_DIR}/minicache_cpp/models/data")

    install(FILES "${models}/table.json" DESTINATION "${data}")

    file(GLOB plans "${models}/plans/*.gguf")
    if (plans)
        install(FILES ${plans} DESTINATION "${data}/plans")
    endif()
endfunction()

# Sets `result` to a file with the licences of the code of others that llama-server and libmtmd contain. That of stb_image,
# miniaudio and subprocess.h is in the public domain.
function(minicache_vendored_licences result)
    set(file "${CMAKE_BINARY_DIR}/bin/LICENSE-vendored")
    file(GLOB_RECURSE texts "${MINICACHE_UPSTREAM_DIR}/vendor/LICENSE*" "${MINICACHE_UPSTREAM_DIR}/licenses/LICENSE-*")
    list(SORT texts)
    set(all "")
    foreach (text IN LISTS texts)
        file(RELATIVE_PATH name "${MINICACHE_UPSTREAM_DIR}" "${text}")
        file(READ "${text}" words)
        string(APPEND all "${name}\n\n${words}\n\n")
    endforeach()
    file(WRITE "${file}" "${all}")
    set(${result} "${file}" PARENT_SCOPE)
endfunction()

function(minicache_install targets)
    include(GNUInstallDirs)

    # the licence also lies beside the libraries, for those who take them from there
    set(license "${CMAKE_BINARY_DIR}/bin/LICENSE-llama.cpp")
    configure_file("${MINICACHE_UPSTREAM_DIR}/LICENSE" "${license}" COPYONLY)
    if (MINICACHE_SERVER OR MINICACHE_MTMD)
        minicache_vendored_licences(vendored)
        list(APPEND license "${vendored}")
    endif()

    if (DEFINED SKBUILD_PLATLIB_DIR)
        set(directory "${MINICACHE_WHEEL_DIR}")
        install(TARGETS ${targets} LIBRARY DESTINATION "${directory}" RUNTIME DESTINATION "${directory}")
        install(FILES ${license} DESTINATION "${directory}")
        minicache_install_models()
        return()
    endif()

    install(TARGETS ${targets}
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}"
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")

    file(GLOB headers "${MINICACHE_UPSTREAM_DIR}/include/*.h" "${MINICACHE_UPSTREAM_DIR}/ggml/include/*.h")
    if (MINICACHE_MTMD)
        set(mtmd "${MINICACHE_UPSTREAM_DIR}/tools/mtmd")
        list(APPEND headers "${mtmd}/mtmd.h" "${mtmd}/mtmd-helper.h")
    endif()
    if (MINICACHE_PATCH)
        list(APPEND headers "${MINICACHE_SOURCE_DIR}/llama/llama-minicache.h")
    endif()
    install(FILES ${headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
    install(FILES ${license} DESTINATION "${CMAKE_INSTALL_DOCDIR}")
endfunction()

# Installs the libraries of an earlier build, by the names that minicache_unversion gives them, with its libmtmd and
# llama-server where it has them.
function(minicache_install_prebuilt directory)
    if (NOT DEFINED SKBUILD_PLATLIB_DIR)
        message(FATAL_ERROR "MINICACHE_PREBUILT is for pip install; a plain build has nothing to do with it")
    endif()

    set(files "")
    foreach (name "libllama.so" "libllama.dylib" "llama.dll" "libggml*.so" "libggml*.dylib" "ggml*.dll")
        file(GLOB found "${directory}/${name}")
        list(APPEND files ${found})
    endforeach()

    if (NOT files)
        message(FATAL_ERROR "MINICACHE_PREBUILT: ${directory} holds no libllama and libggml")
    endif()

    set(more "")
    if (MINICACHE_MTMD)
        list(APPEND more mtmd)
    endif()
    set(server "${directory}/llama-server${CMAKE_EXECUTABLE_SUFFIX}")
    if (MINICACHE_SERVER AND EXISTS "${server}")
        list(APPEND more llama-server-impl llama-common mtmd)
        install(PROGRAMS "${server}" DESTINATION "${MINICACHE_WHEEL_DIR}")
    endif()
    foreach (name IN LISTS more)
        file(GLOB found "${directory}/lib${name}.so" "${directory}/lib${name}.dylib" "${directory}/${name}.dll")
        list(APPEND files ${found})
    endforeach()
    list(REMOVE_DUPLICATES files)

    file(GLOB licenses "${directory}/LICENSE-*")
    install(FILES ${files} ${licenses} DESTINATION "${MINICACHE_WHEEL_DIR}")
    minicache_install_models()
endfunction()
