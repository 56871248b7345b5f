# The few ways in which targets are made here, so that flags and include paths are set in one place.

# Everything of ours is compiled with these; generated code is not.
add_library(modelpress_flags INTERFACE)
target_include_directories(modelpress_flags INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/generated)
target_compile_options(modelpress_flags INTERFACE -Wall -Wextra -Werror -Wno-sign-compare -Wno-missing-field-initializers)
target_compile_definitions(modelpress_flags INTERFACE MODELPRESS_VERSION="${PROJECT_VERSION}")
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  # Used by the fuzz preset alone; GCC's warnings are those that count.
  target_compile_options(modelpress_flags INTERFACE -Wno-error)
elseif(MODELPRESS_SANITIZE MATCHES address)
  # With its checks in between GCC takes members of std::regex and absl::Cord for uninitialized (its manual warns of that). Every
  # other preset has the warning.
  target_compile_options(modelpress_flags INTERFACE -Wno-maybe-uninitialized)
endif()

# No contraction of a * b + c: the arithmetic is specified operation by operation (save.md section 5).
add_compile_options(-ffp-contract=off)
if(MODELPRESS_SANITIZE)
  add_compile_options(-fsanitize=${MODELPRESS_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  if(MODELPRESS_SANITIZE MATCHES address)
    # Under AddressSanitizer abseil's hash tables have extra fields, which Debian's library, built without, knows nothing of.
    add_compile_definitions(NDEBUG_SANITIZER)
  endif()
  if(MODELPRESS_SANITIZE MATCHES undefined)
    # GCC bug 71962: with these checks it takes no comparison of a function's address for constant, which abseil's hash tables need.
    # AddressSanitizer finds null dereferences as well.
    add_compile_options(-fno-sanitize=null,nonnull-attribute,returns-nonnull-attribute)
  endif()
  add_link_options(-fsanitize=${MODELPRESS_SANITIZE})
endif()
add_link_options(-fuse-ld=mold)

# Everything generated, for tools that read the sources without building them.
add_custom_target(generated_sources)

# modelpress_library(NAME SOURCES ... DEPS ...): a static library of ours.
function(modelpress_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC modelpress_flags ${ARG_DEPS})
endfunction()

# modelpress_binary(NAME SOURCES ... DEPS ...): an executable of ours.
function(modelpress_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE modelpress_flags ${ARG_DEPS})
endfunction()

# modelpress_test(NAME [ONE_PROCESS] SOURCES ... DEPS ...): a GoogleTest binary; every test case becomes a ctest test, or with
# ONE_PROCESS, where they share something that is expensive to start, all of them together one.
# Tests find golden files below $MODELPRESS_SOURCE_DIR and the built binaries in $MODELPRESS_BIN_DIR.
function(modelpress_test name)
  cmake_parse_arguments(ARG "ONE_PROCESS" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(MODELPRESS_SANITIZE)
    math(EXPR ARG_TIMEOUT "5 * ${ARG_TIMEOUT}")
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE modelpress_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  # What is tested is compiled as it is shipped; the tests themselves need not be fast, but soon built.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_compile_definitions(${name} PRIVATE MODELPRESS_TEST_DATA="${CMAKE_SOURCE_DIR}/tests")
  set(environment "MODELPRESS_SOURCE_DIR=${CMAKE_SOURCE_DIR};MODELPRESS_BIN_DIR=${CMAKE_BINARY_DIR}/bin")
  if(ARG_ONE_PROCESS)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(
      ${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}" ENVIRONMENT "${environment}")
  else()
    gtest_discover_tests(
      ${name} DISCOVERY_MODE PRE_TEST
      PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}" ENVIRONMENT "${environment}")
  endif()
endfunction()

# modelpress_protos(NAME [GRPC] IMPORT_DIR DIR PROTOS ... DEPS ...): compiles .proto files below DIR into a library; headers
# are included by their path below DIR.
function(modelpress_protos name)
  cmake_parse_arguments(ARG "GRPC" "IMPORT_DIR" "PROTOS;DEPS" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
  set(sources)
  foreach(proto IN LISTS ARG_PROTOS)
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    set(generated ${out}/${stem}.pb.cc ${out}/${stem}.pb.h)
    set(plugin)
    if(ARG_GRPC)
      list(APPEND generated ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
      set(plugin --grpc_out=${out} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN})
    endif()
    add_custom_command(
      OUTPUT ${generated}
      COMMAND protobuf::protoc -I${ARG_IMPORT_DIR} -I${CMAKE_SOURCE_DIR}/api -I${CMAKE_SOURCE_DIR} -I${GOOGLEAPIS_DIR}
              --cpp_out=${out} ${plugin} ${ARG_IMPORT_DIR}/${proto}
      DEPENDS ${ARG_IMPORT_DIR}/${proto}
      VERBATIM)
    list(APPEND sources ${generated})
  endforeach()
  add_library(${name} STATIC ${sources})
  add_dependencies(generated_sources ${name})
  target_include_directories(${name} SYSTEM PUBLIC ${out})
  target_link_libraries(${name} PUBLIC protobuf::libprotobuf ${ARG_DEPS})
  if(ARG_GRPC)
    target_link_libraries(${name} PUBLIC gRPC::grpc++)
  endif()
endfunction()
