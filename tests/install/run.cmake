# Installs the build into a folder of its own and builds and runs a consumer of it, once through the
# CMake package and, where pkg-config is there, once through gdr.pc.
#   cmake -DBUILD= -DWORK= -DSOURCE= -DCOMPILER= -P run.cmake
file(REMOVE_RECURSE ${WORK})
set(prefix ${WORK}/prefix)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix}
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} -G Ninja -S ${SOURCE} -B ${WORK}/build
                -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_C_COMPILER=${COMPILER}
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK}/build/consumer COMMAND_ERROR_IS_FATAL ANY)

find_program(pkg_config pkg-config)
if(pkg_config)
    file(GLOB_RECURSE pc ${prefix}/gdr.pc)
    get_filename_component(pc ${pc} DIRECTORY)
    set(ENV{PKG_CONFIG_PATH} ${pc})
    execute_process(COMMAND ${pkg_config} --cflags --libs gdr OUTPUT_VARIABLE flags
                    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${pkg_config} --variable=libdir gdr OUTPUT_VARIABLE libdir
                    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    separate_arguments(flags UNIX_COMMAND "${flags}")
    execute_process(COMMAND ${COMPILER} ${SOURCE}/main.c ${flags} -lm -Wl,-rpath,${libdir}
                    -o ${WORK}/consumer-pc COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${WORK}/consumer-pc COMMAND_ERROR_IS_FATAL ANY)
endif()
