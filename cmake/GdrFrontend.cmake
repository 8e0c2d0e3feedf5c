# gdr_frontend_sources: the lexer made by re2c and the parser made by Bison, in
# <build>/generated/frontend/{lexer.c,parser.c,parser.h}; include them as "frontend/parser.h".

find_program(GDR_RE2C re2c REQUIRED)
find_package(BISON 3.8 REQUIRED)

set(generated ${PROJECT_BINARY_DIR}/generated/frontend)
file(MAKE_DIRECTORY ${generated})
set(gdr_frontend_sources)

add_custom_command(
    OUTPUT ${generated}/lexer.c
    COMMAND ${GDR_RE2C} -W -Werror --no-generation-date --depfile ${generated}/lexer.d
            -o ${generated}/lexer.c ${PROJECT_SOURCE_DIR}/frontend/lexer.re
    DEPENDS ${PROJECT_SOURCE_DIR}/frontend/lexer.re
    DEPFILE ${generated}/lexer.d
    COMMENT "re2c frontend/lexer.re"
    VERBATIM)
add_custom_command(
    OUTPUT ${generated}/parser.c ${generated}/parser.h
    COMMAND ${BISON_EXECUTABLE} -Wall -Werror -Wcounterexamples
            --file-prefix-map=${PROJECT_BINARY_DIR}/= --file-prefix-map=${PROJECT_SOURCE_DIR}/=
            --header=${generated}/parser.h -o ${generated}/parser.c
            ${PROJECT_SOURCE_DIR}/frontend/parser.y
    DEPENDS ${PROJECT_SOURCE_DIR}/frontend/parser.y
    COMMENT "bison frontend/parser.y"
    VERBATIM)
foreach(part lexer.re:lexer.c parser.y:parser.c)
    string(REPLACE ":" ";" part ${part})
    list(GET part 0 input)
    list(GET part 1 output)
    if(EXISTS ${PROJECT_SOURCE_DIR}/frontend/${input})
        list(APPEND gdr_frontend_sources ${generated}/${output})
        set_source_files_properties(${generated}/${output} PROPERTIES COMPILE_OPTIONS -Wno-undef)
    endif()
endforeach()
