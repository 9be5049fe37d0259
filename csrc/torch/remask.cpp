// select, commit_, select_slots and accept_slots_: their schemas, their checks, and the way to the kernels.
#include <algorithm>
#include <tuple>

#include "../cpu/remask.h"
#include "args.h"

#if defined(SAMPLERS_CUDA)
#include "../cuda/remask.h"
#include "cuda.h"
#endif

namespace samplers {
namespace {

// What every (B, L) argument must be like.
struct Like {
  const char* op;
  const Tensor& first;  // sets device and rows
};

template <typename T>
Plane<T> plane_of(const Like& like, const Tensor& t, ScalarType type, int64_t columns, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == like.first.size(0) && t.size(1) == columns && t.scalar_type() == type &&
                      same_device(t, like.first),
                  like.op, ": ", name, " must have the documented shape and dtype and be on the device of the rest");
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())), t.stride(0), t.stride(1)};
}

template <typename T>
Plane<T> plane_of(const Like& like, const Maybe& t, ScalarType type, int64_t columns, const char* name) {
  return t ? plane_of<T>(like, *t, type, columns, name) : Plane<T>{};
}

Plane<int64_t> written(const Like& like, const Tensor& x, int64_t columns) {
  const Plane<int64_t> plane = plane_of<int64_t>(like, x, ScalarType::Long, columns, "x");
  STD_TORCH_CHECK(x.numel() == 0 || ((x.size(0) == 1 || plane.row != 0) && (x.size(1) == 1 || plane.column != 0)),
                  like.op, ": x is written in place and must not be an expanded tensor");
  return plane;
}

template <typename T>
PerRow<T> per_row(const Like& like, const Maybe& rows, T all, ScalarType type, const char* name) {
  return {vector_of<T>(like.op, rows, type, like.first.size(0), name, &like.first), all};
}

// By the shim: torch::stable::empty goes through the dispatcher, which takes as long as choosing from a short row.
Tensor made(const Like& like, ScalarType type, int64_t rows, int64_t columns = -1) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns < 0 ? 1 : std::max<int64_t>(columns, 1), 1};
  const torch::stable::Device device = like.first.device();
  AtenTensorHandle handle = nullptr;
  const int32_t error = aoti_torch_empty_strided(
      columns < 0 ? 1 : 2, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())), device.index(), &handle);
  STD_TORCH_CHECK(error == 0, like.op, ": torch made no tensor of ", rows, " rows");
  return Tensor(handle);
}

template <typename F>
void run(const Like& like, const Choice<F>& job) {
  if (like.first.is_cpu()) return cpu::choose(job);
#if defined(SAMPLERS_CUDA)
  const OnDevice device(like.first);
  check_launch(like.op, cuda::choose(job, device.stream));
#endif
}

template <typename F>
void run(const Like& like, const Acceptance<F>& job) {
  if (like.first.is_cpu()) return cpu::accept(job);
#if defined(SAMPLERS_CUDA)
  const OnDevice device(like.first);
  check_launch(like.op, cuda::accept(job, device.stream));
#endif
}

using Two = std::tuple<Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

ScalarType score_type(const char* op, const Tensor& score) {
  STD_TORCH_CHECK(score.dim() == 2, op, ": score must be 2-D");
  const ScalarType type = score.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, ": score must be float32 or float64");
  return type;
}

// The arguments that select and commit_ share.
struct Shared {
  const Tensor& score;
  const Maybe &candidate, &cost;
  int64_t rule;
  double level;
  const Maybe& level_rows;
  int64_t least;
  const Maybe& least_rows;
  int64_t most;
  const Maybe& most_rows;
  bool lowest;
};

struct Write {
  const Tensor& x;
  const Maybe& token;
  int64_t fill;
};

template <typename F>
Two choose_as(const Like& like, const Shared& in, const Write* write) {
  constexpr ScalarType kType = sizeof(F) == 4 ? ScalarType::Float : ScalarType::Double;
  Choice<F> job{};
  job.rows = in.score.size(0);
  job.length = job.limit = in.score.size(1);
  job.step = 1;
  job.score = plane_of<const F>(like, in.score, kType, job.length, "score");
  job.cost = plane_of<const F>(like, in.cost, kType, job.length, "cost");
  job.candidate = plane_of<const uint8_t>(like, in.candidate, ScalarType::Bool, job.length, "candidate");
  STD_TORCH_CHECK(in.rule >= 0 && in.rule <= 3, like.op, ": there is no rule ", in.rule);
  job.rule = static_cast<Rule>(in.rule);
  STD_TORCH_CHECK(job.rule != Rule::kBudget || job.length <= kMostCosts, like.op, ": a budget takes rows of at most ",
                  kMostCosts, " positions");
  job.lowest = in.lowest;
  job.level = per_row(like, in.level_rows, in.level, ScalarType::Double, "the rule's number");
  job.least = per_row(like, in.least_rows, in.least, ScalarType::Long, "least");
  job.most = per_row(like, in.most_rows, in.most, ScalarType::Long, "k or most");
  if (write) {
    job.x = written(like, write->x, job.length);
    job.token = plane_of<const int64_t>(like, write->token, ScalarType::Long, job.length, "token");
    job.fill = write->fill;
  }
  Tensor chosen = made(like, ScalarType::Bool, job.rows, job.length);
  Tensor count = made(like, ScalarType::Long, job.rows);
  job.chosen = static_cast<uint8_t*>(chosen.mutable_data_ptr());
  job.count = static_cast<int64_t*>(count.mutable_data_ptr());
  run(like, job);
  return {chosen, count};
}

Two choose(const char* op, const Shared& in, const Write* write) {
  const Like like{op, in.score};
  return score_type(op, in.score) == ScalarType::Float ? choose_as<float>(like, in, write)
                                                       : choose_as<double>(like, in, write);
}

Two select(const Tensor& score, const Maybe& candidate, const Maybe& cost, int64_t rule, double level,
           const Maybe& level_rows, int64_t least, const Maybe& least_rows, int64_t most, const Maybe& most_rows,
           bool lowest) {
  return choose("select", {score, candidate, cost, rule, level, level_rows, least, least_rows, most, most_rows, lowest},
                nullptr);
}

Two commit_(const Tensor& x, const Maybe& token, int64_t fill, const Tensor& score, const Maybe& candidate,
            const Maybe& cost, int64_t rule, double level, const Maybe& level_rows, int64_t least,
            const Maybe& least_rows, int64_t most, const Maybe& most_rows, bool lowest) {
  const Write write{x, token, fill};
  return choose("commit_",
                {score, candidate, cost, rule, level, level_rows, least, least_rows, most, most_rows, lowest}, &write);
}

// Positions per slot, no more than a row has.
int64_t checked_slot(const char* op, const Tensor& first, int64_t slot) {
  STD_TORCH_CHECK(slot >= 1, op, ": slot is ", slot, ", expected 1 or more");
  return std::min(slot, std::max<int64_t>(first.size(1), 1));
}

template <typename F>
Two select_slots_as(const Tensor& score, const Maybe& candidate, int64_t slot, int64_t start, const Maybe& start_rows,
                    double threshold, const Maybe& threshold_rows, int64_t least, int64_t most, bool strict) {
  const Like like{"select_slots", score};
  constexpr ScalarType kType = sizeof(F) == 4 ? ScalarType::Float : ScalarType::Double;
  Choice<F> job{};
  job.rows = score.size(0);
  job.limit = score.size(1);
  job.step = checked_slot(like.op, score, slot);
  job.length = (job.limit + job.step - 1) / job.step;
  job.start = per_row(like, start_rows, start, ScalarType::Long, "start");
  job.score = plane_of<const F>(like, score, kType, job.limit, "score");
  job.candidate = plane_of<const uint8_t>(like, candidate, ScalarType::Bool, job.limit, "candidate");
  job.rule = Rule::kThreshold;
  job.strict = strict;
  job.level = per_row(like, threshold_rows, threshold, ScalarType::Double, "threshold");
  job.least.all = least;
  job.most.all = most;
  Tensor chosen = made(like, ScalarType::Bool, job.rows, job.length);
  Tensor count = made(like, ScalarType::Long, job.rows);
  job.chosen = static_cast<uint8_t*>(chosen.mutable_data_ptr());
  job.count = static_cast<int64_t*>(count.mutable_data_ptr());
  run(like, job);
  return {chosen, count};
}

Two select_slots(const Tensor& score, const Maybe& candidate, int64_t slot, int64_t start, const Maybe& start_rows,
                 double threshold, const Maybe& threshold_rows, int64_t least, int64_t most, bool strict) {
  const auto as =
      score_type("select_slots", score) == ScalarType::Float ? &select_slots_as<float> : &select_slots_as<double>;
  return as(score, candidate, slot, start, start_rows, threshold, threshold_rows, least, most, strict);
}

template <typename F>
Four accept_slots_as(const Tensor& x, const Tensor& token, const Tensor& probability, const Tensor& chosen,
                     const Maybe& candidate, int64_t slot, int64_t start, const Maybe& start_rows, double threshold,
                     const Maybe& threshold_rows, int64_t head, const Maybe& head_slots, int64_t extra, int64_t eos,
                     bool strict, bool partial) {
  const Like like{"accept_slots_", probability};
  constexpr ScalarType kType = sizeof(F) == 4 ? ScalarType::Float : ScalarType::Double;
  Acceptance<F> job{};
  job.rows = probability.size(0);
  job.length = probability.size(1);
  job.slot = checked_slot(like.op, probability, slot);
  job.slots = (job.length + job.slot - 1) / job.slot;
  job.start = per_row(like, start_rows, start, ScalarType::Long, "start");
  job.x = written(like, x, job.length);
  job.token = plane_of<const int64_t>(like, token, ScalarType::Long, job.length, "token");
  job.probability = plane_of<const F>(like, probability, kType, job.length, "probability");
  job.chosen = plane_of<const uint8_t>(like, chosen, ScalarType::Bool, job.slots, "chosen");
  job.candidate = plane_of<const uint8_t>(like, candidate, ScalarType::Bool, job.length, "candidate");
  job.threshold = per_row(like, threshold_rows, threshold, ScalarType::Double, "threshold");
  job.head = plane_of<const int64_t>(like, head_slots, ScalarType::Long, job.slots, "head");
  job.head_all = head;
  STD_TORCH_CHECK(extra >= 0, "accept_slots_: extra is ", extra, ", expected 0 or more");
  job.extra = extra;
  job.eos = eos;
  job.strict = strict;
  job.partial = partial;
  Tensor accepted = made(like, ScalarType::Long, job.rows, job.slots);
  Tensor prefix = made(like, ScalarType::Long, job.rows), end = made(like, ScalarType::Long, job.rows);
  Tensor count = made(like, ScalarType::Long, job.rows);
  job.accepted = static_cast<int64_t*>(accepted.mutable_data_ptr());
  job.prefix = static_cast<int64_t*>(prefix.mutable_data_ptr());
  job.end = static_cast<int64_t*>(end.mutable_data_ptr());
  job.count = static_cast<int64_t*>(count.mutable_data_ptr());
  run(like, job);
  return {accepted, prefix, end, count};
}

Four accept_slots_(const Tensor& x, const Tensor& token, const Tensor& probability, const Tensor& chosen,
                   const Maybe& candidate, int64_t slot, int64_t start, const Maybe& start_rows, double threshold,
                   const Maybe& threshold_rows, int64_t head, const Maybe& head_slots, int64_t extra, int64_t eos,
                   bool strict, bool partial) {
  const auto as = score_type("accept_slots_", probability) == ScalarType::Float ? &accept_slots_as<float>
                                                                                : &accept_slots_as<double>;
  return as(x, token, probability, chosen, candidate, slot, start, start_rows, threshold, threshold_rows, head,
            head_slots, extra, eos, strict, partial);
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def(
      "select(Tensor score, Tensor? candidate, Tensor? cost, int rule, float level, Tensor? level_rows, int least, "
      "Tensor? least_rows, int most, Tensor? most_rows, bool lowest) -> (Tensor chosen, Tensor count)");
  m.def(
      "commit_(Tensor(a!) x, Tensor? token, int fill, Tensor score, Tensor? candidate, Tensor? cost, int rule, "
      "float level, Tensor? level_rows, int least, Tensor? least_rows, int most, Tensor? most_rows, bool lowest) -> "
      "(Tensor chosen, Tensor count)");
  m.def(
      "select_slots(Tensor score, Tensor? candidate, int slot, int start, Tensor? start_rows, float threshold, "
      "Tensor? threshold_rows, int least, int most, bool strict) -> (Tensor chosen, Tensor count)");
  m.def(
      "accept_slots_(Tensor(a!) x, Tensor token, Tensor probability, Tensor chosen, Tensor? candidate, int slot, "
      "int start, Tensor? start_rows, float threshold, Tensor? threshold_rows, int head, Tensor? head_slots, "
      "int extra, int eos, bool strict, bool partial) -> (Tensor accepted, Tensor prefix, Tensor end, Tensor count)");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) {
  m.impl("select", TORCH_BOX(&samplers::select));
  m.impl("commit_", TORCH_BOX(&samplers::commit_));
  m.impl("select_slots", TORCH_BOX(&samplers::select_slots));
  m.impl("accept_slots_", TORCH_BOX(&samplers::accept_slots_));
}

#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) {
  m.impl("select", TORCH_BOX(&samplers::select));
  m.impl("commit_", TORCH_BOX(&samplers::commit_));
  m.impl("select_slots", TORCH_BOX(&samplers::select_slots));
  m.impl("accept_slots_", TORCH_BOX(&samplers::accept_slots_));
}
#endif
