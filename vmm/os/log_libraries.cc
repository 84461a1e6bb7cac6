// SPDX-License-Identifier: Apache-2.0
// What the worker uses of spdlog and fmt, compiled from their headers: both are there as shared
// libraries only, which would bring the shared C++ library along. Everybody else links those.
#include <fmt/format-inl.h>
#include <spdlog/common-inl.h>
#include <spdlog/details/backtracer-inl.h>
#include <spdlog/details/log_msg-inl.h>
#include <spdlog/details/log_msg_buffer-inl.h>
#include <spdlog/details/os-inl.h>
#include <spdlog/details/periodic_worker-inl.h>
#include <spdlog/details/registry-inl.h>
#include <spdlog/logger-inl.h>
#include <spdlog/pattern_formatter-inl.h>
#include <spdlog/sinks/ansicolor_sink-inl.h>
#include <spdlog/sinks/sink-inl.h>
#include <spdlog/sinks/stdout_color_sinks-inl.h>
#include <spdlog/sinks/stdout_sinks-inl.h>
#include <spdlog/spdlog-inl.h>

// The templates that the headers leave to the libraries.
using Console = spdlog::details::console_mutex;
template class spdlog::sinks::stdout_sink_base<Console>;
template class spdlog::sinks::stderr_sink<Console>;
template class spdlog::sinks::ansicolor_sink<Console>;
template class spdlog::sinks::ansicolor_stdout_sink<Console>;
FMT_BEGIN_NAMESPACE
namespace detail {
template char decimal_point_impl<char>(locale_ref);
template thousands_sep_result<char> thousands_sep_impl<char>(locale_ref);
}  // namespace detail
FMT_END_NAMESPACE
