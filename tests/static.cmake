# The one-file gdrc builds, needs libc alone and works:
#   cmake -DSOURCE= -DBUILD= -DLLVM_DIR= -DCOMPILER= -P static.cmake
execute_process(COMMAND ${CMAKE_COMMAND} -G Ninja -S ${SOURCE} -B ${BUILD}
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=${COMPILER} -DGDR_STATIC_LLVM=ON -DGDR_TESTS=OFF
    -DGDR_EXAMPLES=OFF -DGDR_INSTALL=OFF -DLLVM_DIR=${LLVM_DIR} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target gdrc -j 2
    COMMAND_ERROR_IS_FATAL ANY)

set(gdrc ${BUILD}/bin/gdrc)
file(SIZE ${gdrc} size)
math(EXPR mib "${size} / 1048576")
message(STATUS "${mib} MiB")
if(mib GREATER 64)
    message(FATAL_ERROR "larger than 64 MiB")
endif()
execute_process(COMMAND ldd ${gdrc} OUTPUT_VARIABLE needed COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" needed "${needed}")
foreach(line IN LISTS needed)
    if(line MATCHES "[a-z]" AND NOT line MATCHES "linux-vdso|libc\\.so|libm\\.so|ld-linux")
        message(FATAL_ERROR "needs more than libc: ${line}")
    endif()
endforeach()
execute_process(COMMAND ${gdrc} --version COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${gdrc} compile ${SOURCE}/specs/gdn2.gdr --target host,sm_90a --emit ptx,obj
    -o ${BUILD}/out COMMAND_ERROR_IS_FATAL ANY)
