# gdr_llvm: LLVM 22's C API. Debian keeps each LLVM under its own prefix, and its version file
# accepts "22.1" but not "22".
#
# Shared by default. With GDR_STATIC_LLVM the code of NVPTX, of this machine's own target, of the
# JIT and of the passes is linked in, with libstdc++, libgcc, zlib and zstd, so that the result
# needs libc alone.

if(GDR_STATIC_LLVM)
    # LLVM's archives are C++; its package description also asks for these two by name.
    enable_language(CXX)
    set(gdr_linker_language CXX)
    set(ZLIB_USE_STATIC_LIBS ON)
else()
    set(gdr_linker_language C)
endif()

set(CMAKE_MESSAGE_LOG_LEVEL NOTICE) # the package reports optional parts that are not needed here
find_package(LLVM 22.1 REQUIRED CONFIG HINTS
    $ENV{LLVM_DIR} /usr/lib/llvm-22/lib/cmake/llvm /usr/local/opt/llvm@22/lib/cmake/llvm)
unset(CMAKE_MESSAGE_LOG_LEVEL)
message(STATUS "LLVM ${LLVM_PACKAGE_VERSION} in ${LLVM_DIR}")

add_library(gdr_llvm INTERFACE)
target_include_directories(gdr_llvm SYSTEM INTERFACE ${LLVM_INCLUDE_DIRS})

if(GDR_STATIC_LLVM)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
        set(native_target AArch64)
    else()
        set(native_target X86)
    endif()
    llvm_map_components_to_libnames(llvm_libraries NVPTX ${native_target} orcjit passes)
    # The package names the shared zstd; point that name at the archive.
    find_library(GDR_ZSTD_ARCHIVE libzstd.a REQUIRED)
    find_library(GDR_ZLIB_ARCHIVE libz.a REQUIRED)
    foreach(pair "zstd::libzstd_shared;${GDR_ZSTD_ARCHIVE}" "ZLIB::ZLIB;${GDR_ZLIB_ARCHIVE}")
        list(GET pair 0 name)
        list(GET pair 1 archive)
        if(TARGET ${name})
            get_target_property(configs ${name} IMPORTED_CONFIGURATIONS)
            set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${archive})
            foreach(config IN LISTS configs)
                set_target_properties(${name} PROPERTIES IMPORTED_LOCATION_${config} ${archive})
            endforeach()
        endif()
    endforeach()
    set(gdr_llvm_libraries ${llvm_libraries})
    target_link_options(gdr_llvm INTERFACE -static-libstdc++ -static-libgcc LINKER:--as-needed)
else()
    set(gdr_llvm_libraries LLVM)
endif()
target_link_libraries(gdr_llvm INTERFACE ${gdr_llvm_libraries})
