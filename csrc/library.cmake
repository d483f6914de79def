# The C library, shared and static, as it is installed. From C++ and CMake:
#   find_package(diffq_fast REQUIRED)
#   target_link_libraries(program PRIVATE diffq_fast::diffq_fast)   # or diffq_fast::static
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(objects $<TARGET_OBJECTS:diffq_fast_core> $<TARGET_OBJECTS:diffq_fast_reader>)
add_library(diffq_fast SHARED ${objects})
add_library(diffq_fast_static STATIC ${objects})
foreach(library diffq_fast diffq_fast_static)
  set_target_properties(${library} PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(${library} INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${library} PRIVATE Threads::Threads)
  add_library(diffq_fast::${library} ALIAS ${library})
endforeach()
string(REGEX MATCH "^[0-9]+\.[0-9]+" soversion "${version}")
set_target_properties(diffq_fast PROPERTIES VERSION ${version} SOVERSION ${soversion})
target_compile_definitions(diffq_fast INTERFACE DIFFQ_FAST_SHARED)
set_target_properties(diffq_fast_static PROPERTIES EXPORT_NAME static)
if(NOT MSVC)
  set_target_properties(diffq_fast_static PROPERTIES OUTPUT_NAME diffq_fast)
endif()
if(UNIX AND NOT APPLE)
  # What the headers of the C++ library make is visible by itself, whatever the compiler is told.
  set(exports ${CMAKE_CURRENT_SOURCE_DIR}/csrc/interface/exports.map)
  target_link_options(diffq_fast PRIVATE -Wl,--version-script,${exports})
  set_target_properties(diffq_fast PROPERTIES LINK_DEPENDS ${exports})
endif()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/diffq_fast)
install(TARGETS diffq_fast diffq_fast_static EXPORT diffq_fast COMPONENT c
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_COMPONENT c
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES csrc/include/diffq_fast.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT c)
install(EXPORT diffq_fast FILE diffq_fastTargets.cmake NAMESPACE diffq_fast:: DESTINATION ${package} COMPONENT c)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/diffq_fastConfig.cmake
  "include(CMakeFindDependencyMacro)\nfind_dependency(Threads)\n"
  "include(\${CMAKE_CURRENT_LIST_DIR}/diffq_fastTargets.cmake)\n")
write_basic_package_version_file(diffq_fastConfigVersion.cmake VERSION ${version} COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /) # the package may be moved
configure_file(csrc/interface/diffq_fast.pc.in diffq_fast.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/diffq_fastConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/diffq_fastConfigVersion.cmake DESTINATION ${package} COMPONENT c)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/diffq_fast.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT c)

if(DIFFQ_FAST_TESTS) # the header is C, and C programs need nothing but the library
  enable_language(C)
  add_executable(c_program csrc/tests/interface/c_program.c)
  set_target_properties(c_program PROPERTIES C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
  target_link_libraries(c_program PRIVATE diffq_fast)
  add_test(NAME c_program COMMAND c_program ${CMAKE_CURRENT_SOURCE_DIR}/tests/data/packed_v1_documented.safetensors)
endif()
