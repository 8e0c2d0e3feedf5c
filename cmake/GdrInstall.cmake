# Install rules: library, header, command, specs, CMake package and pkg-config file. Both package
# files find everything relative to themselves, so an installed tree can be moved.
include(CMakePackageConfigHelpers)

install(TARGETS gdr EXPORT gdrTargets
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET gdrc)
    install(TARGETS gdrc RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(EXISTS ${PROJECT_SOURCE_DIR}/docs/gdrc.1)
    install(FILES docs/gdrc.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()
install(DIRECTORY specs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/gdrc/specs FILES_MATCHING PATTERN *.gdr)
install(EXPORT gdrTargets NAMESPACE gdr:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/gdr)

configure_package_config_file(cmake/gdrConfig.cmake.in ${PROJECT_BINARY_DIR}/gdrConfig.cmake
    INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/gdr)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gdrConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/gdrConfig.cmake ${PROJECT_BINARY_DIR}/gdrConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/gdr)

set(gdr_pc_libraries)
if(NOT BUILD_SHARED_LIBS)
    list(TRANSFORM gdr_llvm_libraries PREPEND -l OUTPUT_VARIABLE gdr_pc_libraries)
    list(JOIN gdr_pc_libraries " " gdr_pc_libraries)
    string(PREPEND gdr_pc_libraries " -L${LLVM_LIBRARY_DIRS} ")
    string(APPEND gdr_pc_libraries " -pthread -lm -ldl")
    if(GDR_STATIC_LLVM)
        string(APPEND gdr_pc_libraries " -lz -lzstd -lstdc++")
    endif()
endif()
# From <prefix>/<libdir>/pkgconfig back to <prefix>.
file(RELATIVE_PATH gdr_pc_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/gdr.pc.in ${PROJECT_BINARY_DIR}/gdr.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/gdr.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
