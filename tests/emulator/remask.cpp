#include "remask.cuh"

#include <pybind11/pybind11.h>

namespace py = pybind11;
using namespace samplers;

namespace {

template <typename T>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<int64_t>());
}

// (address, row stride, column stride), the address 0 where there is no such tensor.
template <typename T>
Plane<T> plane(const py::dict& d, const char* name) {
  const py::tuple t = d[name];
  return {pointer<T>(t[0]), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
}

// (address or 0, number).
template <typename T>
PerRow<T> per_row(const py::dict& d, const char* name) {
  const py::tuple t = d[name];
  return {pointer<const T>(t[0]), t[1].cast<T>()};
}

template <typename F>
int choose(const py::dict& d) {
  Choice<F> job{};
  job.rows = d["rows"].cast<int64_t>();
  job.length = d["length"].cast<int64_t>();
  job.limit = d["limit"].cast<int64_t>();
  job.step = d["step"].cast<int64_t>();
  job.start = per_row<int64_t>(d, "start");
  job.score = plane<const F>(d, "score");
  job.cost = plane<const F>(d, "cost");
  job.candidate = plane<const uint8_t>(d, "candidate");
  job.rule = static_cast<Rule>(d["rule"].cast<int>());
  job.lowest = d["lowest"].cast<bool>();
  job.strict = d["strict"].cast<bool>();
  job.level = per_row<double>(d, "level");
  job.least = per_row<int64_t>(d, "least");
  job.most = per_row<int64_t>(d, "most");
  job.chosen = pointer<uint8_t>(d["chosen"]);
  job.count = pointer<int64_t>(d["count"]);
  job.x = plane<int64_t>(d, "x");
  job.token = plane<const int64_t>(d, "token");
  job.fill = d["fill"].cast<int64_t>();
  return cuda::remask::choose(job, nullptr);
}

template <typename F>
int accept(const py::dict& d) {
  Acceptance<F> job{};
  job.rows = d["rows"].cast<int64_t>();
  job.length = d["length"].cast<int64_t>();
  job.slots = d["slots"].cast<int64_t>();
  job.slot = d["slot"].cast<int64_t>();
  job.start = per_row<int64_t>(d, "start");
  job.x = plane<int64_t>(d, "x");
  job.token = plane<const int64_t>(d, "token");
  job.probability = plane<const F>(d, "probability");
  job.chosen = plane<const uint8_t>(d, "chosen");
  job.candidate = plane<const uint8_t>(d, "candidate");
  job.threshold = per_row<double>(d, "threshold");
  job.head = plane<const int64_t>(d, "head");
  job.head_all = d["head_all"].cast<int64_t>();
  job.extra = d["extra"].cast<int64_t>();
  job.eos = d["eos"].cast<int64_t>();
  job.strict = d["strict"].cast<bool>();
  job.partial = d["partial"].cast<bool>();
  job.accepted = pointer<int64_t>(d["accepted"]);
  job.prefix = pointer<int64_t>(d["prefix"]);
  job.end = pointer<int64_t>(d["end"]);
  job.count = pointer<int64_t>(d["count"]);
  return cuda::remask::accept(job, nullptr);
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("choose", [](bool wide, const py::dict& d) { return wide ? choose<double>(d) : choose<float>(d); });
  m.def("accept", [](bool wide, const py::dict& d) { return wide ? accept<double>(d) : accept<float>(d); });
}
