# SPDX-License-Identifier: Apache-2.0
# A lean program, kvmbus_program(... LEAN), starts fast and holds little memory of its own: it has its libraries built
# in, with what it calls of them alone. A shared library costs a process the time to load and relocate it, its relocated
# pages and, as long as no other process has it mapped, all of the pages around those that it touches: the sixty of
# gRPC's are two thirds of the time of a short vmctl. The tests take the shared ones.
#
# kvmbus_choose(kvmbus_lz4 PkgConfig::LZ4 liblz4.a): a target that is the archive in a lean program, else the library.
function(kvmbus_choose name shared archive)
  if(archive MATCHES "^[^;]*\\.a$")
    find_library(${name}_ARCHIVE ${archive} REQUIRED)
    mark_as_advanced(${name}_ARCHIVE)
    set(archive ${${name}_ARCHIVE})
  endif()
  add_library(${name} INTERFACE)
  target_link_libraries(${name} INTERFACE "$<IF:$<BOOL:$<TARGET_PROPERTY:KVMBUS_LEAN>>,${archive},${shared}>")
endfunction()

# gRPC without TLS, which goes over Unix sockets alone, and what it is made of.
function(kvmbus_choose_grpc)
  pkg_check_modules(GRPCPP_ARCHIVES REQUIRED grpc++_unsecure)
  set(archives)
  foreach(name ${GRPCPP_ARCHIVES_STATIC_LIBRARIES} address_sorting cares re2 upb z)
    if(name MATCHES "^(grpc|gpr|absl_|address_sorting|cares|re2|upb|z)")
      list(APPEND archives lib${name}.a)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES archives)
  set(paths)
  foreach(archive ${archives})
    find_library(GRPCPP_${archive} ${archive} REQUIRED)
    mark_as_advanced(GRPCPP_${archive})
    list(APPEND paths ${GRPCPP_${archive}})
  endforeach()
  kvmbus_choose(kvmbus_grpc PkgConfig::GRPCPP "-Wl$<COMMA>--start-group;${paths};-Wl$<COMMA>--end-group")
endfunction()

function(kvmbus_make_lean program)
  if(KVMBUS_SANITIZE)
    return()  # the sanitizers watch the shared C++ library
  endif()
  set_target_properties(${program} PROPERTIES KVMBUS_LEAN ON)
  target_link_options(${program} PRIVATE -static-libgcc -static-libstdc++ -Wl,--gc-sections -Wl,--as-needed)
endfunction()

kvmbus_choose(kvmbus_fdt ${FDT_LIBRARY} libfdt.a)
kvmbus_choose(kvmbus_fmt fmt::fmt vmm_log_libraries)
kvmbus_choose_grpc()
kvmbus_choose(kvmbus_lz4 PkgConfig::LZ4 liblz4.a)
kvmbus_choose(kvmbus_lzma PkgConfig::LZMA liblzma.a)
kvmbus_choose(kvmbus_program_options Boost::program_options libboost_program_options.a)
kvmbus_choose(kvmbus_protobuf_lite protobuf::libprotobuf-lite libprotobuf-lite.a)
kvmbus_choose(kvmbus_pugixml PkgConfig::PUGIXML libpugixml.a)
kvmbus_choose(kvmbus_spdlog spdlog::spdlog vmm_log_libraries)
kvmbus_choose(kvmbus_uring PkgConfig::URING liburing.a)
kvmbus_choose(kvmbus_zlib PkgConfig::ZLIB libz.a)
kvmbus_choose(kvmbus_zstd PkgConfig::ZSTD libzstd.a)
