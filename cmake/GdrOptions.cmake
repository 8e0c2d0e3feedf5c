# gdr_options: how every C file of the project is compiled: language, include paths, warnings,
# sanitizers. Warnings become errors only through CMAKE_COMPILE_WARNING_AS_ERROR (presets set it).

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

add_library(gdr_options INTERFACE)
target_include_directories(gdr_options INTERFACE
    ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
target_compile_options(gdr_options INTERFACE
    -Wall -Wextra -Wshadow -Wvla -Wundef -Wwrite-strings -Wstrict-prototypes -Wmissing-prototypes
    -Wold-style-definition
    # Depends on what the optimiser happens to see: shown, never an error.
    $<$<C_COMPILER_ID:GNU>:-Wno-error=maybe-uninitialized>
    -ffile-prefix-map=${PROJECT_SOURCE_DIR}/= # messages and debug information name no build path
    -ffunction-sections -fdata-sections)
target_link_options(gdr_options INTERFACE LINKER:--gc-sections)
target_link_libraries(gdr_options INTERFACE Threads::Threads m ${CMAKE_DL_LIBS})

if(GDR_SANITIZE OR GDR_FUZZ)
    set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined
        -fno-omit-frame-pointer)
    if(GDR_FUZZ)
        list(APPEND sanitizers -fsanitize=fuzzer-no-link)
    endif()
    target_compile_options(gdr_options INTERFACE ${sanitizers})
    target_link_options(gdr_options INTERFACE ${sanitizers})
endif()
