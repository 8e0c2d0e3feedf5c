# The one-file gdrc and libgdr.so build and need libc alone, and gdrc works:
#   cmake -DSOURCE= -DBUILD= -DLLVM_DIR= -DCOMPILER= -P static.cmake
execute_process(COMMAND ${CMAKE_COMMAND} -G Ninja -S ${SOURCE} -B ${BUILD}
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=${COMPILER} -DGDR_STATIC_LLVM=ON -DGDR_TESTS=OFF
    -DGDR_EXAMPLES=OFF -DGDR_INSTALL=OFF -DLLVM_DIR=${LLVM_DIR} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target gdrc gdr -j 2
    COMMAND_ERROR_IS_FATAL ANY)

set(gdrc ${BUILD}/bin/gdrc)
foreach(file ${gdrc} ${BUILD}/lib/libgdr.so)
    file(REAL_PATH ${file} file)
    file(SIZE ${file} size)
    math(EXPR mib "${size} / 1048576")
    message(STATUS "${file}: ${mib} MiB")
    if(mib GREATER 55)
        message(FATAL_ERROR "larger than 55 MiB")
    endif()
    execute_process(COMMAND ldd ${file} OUTPUT_VARIABLE needed COMMAND_ERROR_IS_FATAL ANY)
    string(REPLACE "\n" ";" needed "${needed}")
    foreach(line IN LISTS needed)
        if(line MATCHES "[a-z]" AND NOT line MATCHES "linux-vdso|libc\\.so|libm\\.so|ld-linux")
            message(FATAL_ERROR "needs more than libc: ${line}")
        endif()
    endforeach()
endforeach()
execute_process(COMMAND ${gdrc} --version COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${gdrc} compile ${SOURCE}/specs/gdn2.gdr --target host,sm_90a --emit ptx,obj
    -o ${BUILD}/out COMMAND_ERROR_IS_FATAL ANY)
