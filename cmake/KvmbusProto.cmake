# SPDX-License-Identifier: Apache-2.0
# kvmbus_proto(proto_config LITE SOURCES config/vm.proto DEPS ...) makes a library of C++ from proto/; headers are
# included as "config/vm.pb.h". With GRPC, the service stubs too. Schemas have optimize_for = LITE_RUNTIME, as LITE
# says, and link the lite library alone.
set(KVMBUS_PROTO_GEN ${CMAKE_BINARY_DIR}/proto_gen)
file(MAKE_DIRECTORY ${KVMBUS_PROTO_GEN})
function(kvmbus_proto name)
  cmake_parse_arguments(ARG "GRPC;LITE" "" "SOURCES;DEPS" ${ARGN})
  set(outputs)
  foreach(source ${ARG_SOURCES})
    string(REGEX REPLACE "\\.proto$" "" stem ${source})
    set(files ${KVMBUS_PROTO_GEN}/${stem}.pb.cc ${KVMBUS_PROTO_GEN}/${stem}.pb.h)
    set(flags --cpp_out=${KVMBUS_PROTO_GEN})
    if(ARG_GRPC)
      list(APPEND files ${KVMBUS_PROTO_GEN}/${stem}.grpc.pb.cc ${KVMBUS_PROTO_GEN}/${stem}.grpc.pb.h)
      find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
      list(APPEND flags --grpc_out=${KVMBUS_PROTO_GEN} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN})
    endif()
    add_custom_command(OUTPUT ${files}
      COMMAND protobuf::protoc -I ${CMAKE_SOURCE_DIR}/proto ${flags} ${CMAKE_SOURCE_DIR}/proto/${source}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${source} VERBATIM)
    list(APPEND outputs ${files})
  endforeach()
  add_library(${name} STATIC ${outputs})
  target_include_directories(${name} SYSTEM PUBLIC ${KVMBUS_PROTO_GEN})
  target_compile_options(${name} PRIVATE -w)
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  target_link_libraries(${name} PUBLIC kvmbus_protobuf_lite)
  if(ARG_GRPC)
    target_link_libraries(${name} PUBLIC kvmbus_grpc)
  endif()
endfunction()
