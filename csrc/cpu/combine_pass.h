// The loop over a chunk: included once per instruction set by combine.cpp, each time under a target of its own.

template <typename F, int kTerms>
static void combine_terms(const CombineJob<F>& given, int64_t begin, int64_t end) {
  const CombineJob<F> job = given;  // nothing that the loop writes can be a part of it
  F* __restrict out = job.out;
  const F *a = job.in[0], *b = job.in[1], *c = job.in[2], *d = job.in[3], *e = job.in[4];
  const F ca = job.c[0], cb = job.c[1], cc = job.c[2], cd = job.c[3], ce = job.c[4];
  for (int64_t i = begin; i < end; ++i) {
    F sum = ca * a[i];
    if constexpr (kTerms > 1) sum = sum + cb * b[i];
    if constexpr (kTerms > 2) sum = sum + cc * c[i];
    if constexpr (kTerms > 3) sum = sum + cd * d[i];
    if constexpr (kTerms > 4) sum = sum + ce * e[i];
    out[i] = sum;
  }
}

template <typename F>
static void combine_chunk(const CombineJob<F>& job, int64_t begin, int64_t end) {
  switch (job.terms) {
    case 1:
      return combine_terms<F, 1>(job, begin, end);
    case 2:
      return combine_terms<F, 2>(job, begin, end);
    case 3:
      return combine_terms<F, 3>(job, begin, end);
    case 4:
      return combine_terms<F, 4>(job, begin, end);
    default:
      return combine_terms<F, 5>(job, begin, end);
  }
}
