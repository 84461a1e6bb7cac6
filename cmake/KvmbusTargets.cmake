# SPDX-License-Identifier: Apache-2.0
# One way to declare a library, a program, a unit test and a fuzz target.

add_library(kvmbus_options INTERFACE)
target_include_directories(kvmbus_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/proto_gen)
target_compile_options(kvmbus_options INTERFACE
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wno-missing-field-initializers
  $<$<BOOL:${KVMBUS_WERROR}>:-Werror>)
target_compile_definitions(kvmbus_options INTERFACE SPDLOG_FMT_EXTERNAL SPDLOG_COMPILED_LIB)
if(KVMBUS_SANITIZE)
  target_compile_options(kvmbus_options INTERFACE -fsanitize=${KVMBUS_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(kvmbus_options INTERFACE -fsanitize=${KVMBUS_SANITIZE})
  # GCC 12 takes what the sanitizers add to the C++ library's own templates for reads of nothing.
  target_compile_options(kvmbus_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  if(KVMBUS_SANITIZE MATCHES "undefined")
    target_compile_options(kvmbus_options INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()
if(KVMBUS_FUZZ)
  target_compile_options(kvmbus_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# kvmbus_library(vmm_os SOURCES a.cc DEPS vmm_result fmt::fmt)
function(kvmbus_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_link_libraries(${name} PUBLIC kvmbus_options ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE kvmbus_options ${ARG_DEPS})
  endif()
endfunction()

# kvmbus_program(vmctl SOURCES main.cc DEPS ...): lands in build/<preset>/bin. LEAN: see KvmbusLean.cmake.
function(kvmbus_program name)
  cmake_parse_arguments(ARG "LEAN" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvmbus_options ${ARG_DEPS})
  if(ARG_LEAN)
    kvmbus_make_lean(${name})
  endif()
endfunction()

# kvmbus_test(vmm_os_test SOURCES a_test.cc DEPS vmm_os): a GoogleTest program, one ctest entry, label "unit".
function(kvmbus_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(KVMBUS_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvmbus_options ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} --gtest_brief=1)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(KVMBUS_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 10")
  endif()
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT ${ARG_TIMEOUT})
endfunction()

# kvmbus_fuzz(vhdx_open_fuzz SOURCES f.cc DEPS ...): LLVMFuzzerTestOneInput; built in the fuzz preset alone.
# Seeds, if any, are in tests/fuzz/corpus/<name>. CI runs each for a short time.
function(kvmbus_fuzz name)
  cmake_parse_arguments(ARG "" "MAX_LEN" "SOURCES;DEPS" ${ARGN})
  if(NOT KVMBUS_FUZZ)
    return()
  endif()
  if(NOT ARG_MAX_LEN)
    set(ARG_MAX_LEN 4096)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvmbus_options ${ARG_DEPS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
  set(corpus ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
  if(NOT EXISTS ${corpus})
    set(corpus "")
  endif()
  add_test(NAME ${name} COMMAND ${name} -max_total_time=$ENV{KVMBUS_FUZZ_SECONDS} -timeout=10 -rss_limit_mb=1024
           -max_len=${ARG_MAX_LEN} -verbosity=0 -print_final_stats=1 ${CMAKE_BINARY_DIR}/fuzz/corpus_${name} ${corpus})
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz/corpus_${name})
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 600)
endfunction()

# kvmbus_bench(ring_bench SOURCES ... DEPS ...): a Google Benchmark program in build/<preset>/bench; ctest runs it
# once with a minimal time so that it never rots. Google Benchmark exits with 0 whatever happens, hence the
# expression; 77 says that this host cannot run it.
function(kvmbus_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(KVMBUS_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvmbus_options ${ARG_DEPS} benchmark::benchmark_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
  add_test(NAME ${name}_smoke COMMAND ${name} --benchmark_min_time=0.001)
  set_tests_properties(${name}_smoke PROPERTIES LABELS unit TIMEOUT 120 FAIL_REGULAR_EXPRESSION "ERROR OCCURRED"
                       SKIP_RETURN_CODE 77)
endfunction()
