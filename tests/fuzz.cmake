# Configures and builds the libFuzzer targets: cmake -DSOURCE= -DBUILD= -DLLVM_DIR= -P fuzz.cmake
find_program(clang NAMES clang clang-14 clang-15 clang-16 clang-17 clang-18 clang-19)
if(clang)
    file(MAKE_DIRECTORY ${BUILD})
    file(WRITE ${BUILD}/probe.c
         "#include <stddef.h>\n#include <stdint.h>\nint LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);\n"
         "int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) { return p && n ? 0 : 0; }\n")
    execute_process(COMMAND ${clang} -fsanitize=fuzzer ${BUILD}/probe.c -o ${BUILD}/probe
                    RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
endif()
if(NOT clang OR NOT status EQUAL 0)
    message(STATUS "clang with libFuzzer not found")
    return()
endif()
execute_process(COMMAND ${CMAKE_COMMAND} -G Ninja -S ${SOURCE} -B ${BUILD}
    -DCMAKE_C_COMPILER=${clang} -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGDR_FUZZ=ON
    -DLLVM_DIR=${LLVM_DIR} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target fuzz -j 2
    COMMAND_ERROR_IS_FATAL ANY)
