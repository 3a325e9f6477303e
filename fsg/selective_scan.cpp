// The selective scan on the CPU: forward, and backward with recomputed states. See selective_scan.py for the formula.
//
// Channels are independent but for the gradients of B and C, so they are dealt out to threads; the states of a channel
// lie side by side, so the compiler vectorises over them. The backward pass keeps one state every SEGMENT tokens and
// recomputes the rest: nothing of the size tokens x channels x states is ever held.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t SEGMENT = 64;

inline double exponential(double x) { return std::exp(x); }

// exp for x <= 0 by range reduction and a polynomial, about 1 ulp; plain arithmetic, so that it vectorises.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float k = shifted - 12582912.0f;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

template <typename T>
struct Problem {
  int64_t sequences, tokens, outputs, channels, states;
  const int64_t *lengths, *tails;
  const T *x, *delta, *A, *B, *C, *D;  // [E, T] [E, T] [E, N] [T, N] [M, N] [E]
};

template <typename T>
void forward_channel(const Problem<T>& p, int64_t e, T* y) {
  const int64_t N = p.states;
  const T *A = p.A + e * N, *x = p.x + e * p.tokens, *delta = p.delta + e * p.tokens;
  std::vector<T> h(N);
  int64_t t = 0, m = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    std::fill(h.begin(), h.end(), T(0));
    const int64_t end = t + p.lengths[s], tail = end - p.tails[s];
    for (; t < end; ++t) {
      const T d = delta[t], dx = d * x[t];
      const T* B = p.B + t * N;
#pragma omp simd
      for (int64_t n = 0; n < N; ++n) h[n] = exponential(d * A[n]) * h[n] + dx * B[n];
      if (t >= tail) {
        const T* C = p.C + m * N;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t n = 0; n < N; ++n) sum += C[n] * h[n];
        y[e * p.outputs + m++] = sum + p.D[e] * x[t];
      }
    }
  }
}

template <typename T>
void backward_channel(const Problem<T>& p, int64_t e, const T* dy, T* dx, T* ddelta, T* dA, T* dB, T* dC, T* dD) {
  const int64_t N = p.states;
  const T *A = p.A + e * N, *x = p.x + e * p.tokens, *delta = p.delta + e * p.tokens;
  dx += e * p.tokens, ddelta += e * p.tokens, dA += e * N;
  std::vector<T> entry, h((SEGMENT + 1) * N), decay(SEGMENT * N), g(N);
  int64_t begin = 0, output = 0;
  T sum_D = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t length = p.lengths[s], end = begin + length, tail = end - p.tails[s];
    const int64_t segments = (length + SEGMENT - 1) / SEGMENT;
    entry.assign(segments * N, T(0));  // the state on entry to each segment
    for (int64_t i = 0; i + 1 < segments; ++i) {
      T* state = entry.data() + (i + 1) * N;
      std::copy_n(entry.data() + i * N, N, state);
      for (int64_t t = begin + i * SEGMENT; t < begin + (i + 1) * SEGMENT; ++t) {
        const T d = delta[t], step = d * x[t];
        const T* B = p.B + t * N;
#pragma omp simd
        for (int64_t n = 0; n < N; ++n) state[n] = exponential(d * A[n]) * state[n] + step * B[n];
      }
    }
    std::fill(g.begin(), g.end(), T(0));
    for (int64_t i = segments - 1; i >= 0; --i) {
      const int64_t first = begin + i * SEGMENT, last = std::min(first + SEGMENT, end);
      std::copy_n(entry.data() + i * N, N, h.data());
      for (int64_t t = first; t < last; ++t) {
        const T d = delta[t], step = d * x[t];
        const T *B = p.B + t * N, *before = h.data() + (t - first) * N;
        T *after = h.data() + (t - first + 1) * N, *a = decay.data() + (t - first) * N;
#pragma omp simd
        for (int64_t n = 0; n < N; ++n) {
          a[n] = exponential(d * A[n]);
          after[n] = a[n] * before[n] + step * B[n];
        }
      }
      for (int64_t t = last - 1; t >= first; --t) {
        const T d = delta[t], xt = x[t];
        const T *B = p.B + t * N, *before = h.data() + (t - first) * N, *after = before + N;
        const T* a = decay.data() + (t - first) * N;
        T* dBt = dB + t * N;
        T gx = 0;
        if (t >= tail) {
          const int64_t m = output + (t - tail);
          const T* C = p.C + m * N;
          const T dyt = dy[e * p.outputs + m];
          T* dCm = dC + m * N;
          for (int64_t n = 0; n < N; ++n) {
            g[n] += C[n] * dyt;
            dCm[n] += dyt * after[n];
          }
          gx = p.D[e] * dyt;
          sum_D += dyt * xt;
        }
        T gB = 0, gd = 0;
#pragma omp simd reduction(+ : gB, gd)
        for (int64_t n = 0; n < N; ++n) {
          const T through = g[n] * a[n], carried = through * before[n];
          gB += g[n] * B[n];
          gd += carried * A[n];
          dA[n] += carried * d;
          dBt[n] += g[n] * d * xt;
          g[n] = through;
        }
        dx[t] = gx + gB * d;
        ddelta[t] = gd + gB * xt;
      }
    }
    begin = end;
    output += p.tails[s];
  }
  dD[e] = sum_D;
}

template <typename Work>
void share(int64_t threads, int64_t channels, Work work) {
  threads = std::max<int64_t>(1, std::min(threads, channels));
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i)
    others.emplace_back(work, i, channels * i / threads, channels * (i + 1) / threads);
  work(0, 0, channels / threads);
  for (auto& other : others) other.join();
}

template <typename T>
void forward(const Problem<T>& p, T* y, int64_t threads) {
  share(threads, p.channels, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t e = from; e < to; ++e) forward_channel(p, e, y);
  });
}

template <typename T>
void backward(const Problem<T>& p, const T* dy, T* dx, T* ddelta, T* dA, T* dB, T* dC, T* dD, int64_t threads) {
  threads = std::max<int64_t>(1, std::min(threads, p.channels));
  const int64_t b = p.tokens * p.states, c = p.outputs * p.states;
  std::vector<T> own((threads - 1) * (b + c), T(0));  // each further thread sums B's and C's gradients by itself
  share(threads, p.channels, [&](int64_t i, int64_t from, int64_t to) {
    T* mine = own.data() + (i - 1) * (b + c);
    for (int64_t e = from; e < to; ++e)
      backward_channel(p, e, dy, dx, ddelta, dA, i ? mine : dB, i ? mine + b : dC, dD);
  });
  for (int64_t i = 0; i + 1 < threads; ++i) {
    const T* theirs = own.data() + i * (b + c);
    for (int64_t j = 0; j < b; ++j) dB[j] += theirs[j];
    for (int64_t j = 0; j < c; ++j) dC[j] += theirs[b + j];
  }
}

}  // namespace

#define EXPORT(T, suffix)                                                                                             \
  extern "C" void scan_forward_##suffix(int64_t sequences, int64_t tokens, int64_t outputs, int64_t channels,         \
                                        int64_t states, const int64_t* lengths, const int64_t* tails, const T* x,     \
                                        const T* delta, const T* A, const T* B, const T* C, const T* D,               \
                                        int64_t threads, T* y) {                                                      \
    forward<T>({sequences, tokens, outputs, channels, states, lengths, tails, x, delta, A, B, C, D}, y, threads);     \
  }                                                                                                                   \
  extern "C" void scan_backward_##suffix(int64_t sequences, int64_t tokens, int64_t outputs, int64_t channels,        \
                                         int64_t states, const int64_t* lengths, const int64_t* tails, const T* x,    \
                                         const T* delta, const T* A, const T* B, const T* C, const T* D,              \
                                         int64_t threads, const T* dy, T* dx, T* ddelta, T* dA, T* dB, T* dC, T* dD) { \
    backward<T>({sequences, tokens, outputs, channels, states, lengths, tails, x, delta, A, B, C, D}, dy, dx, ddelta, \
                dA, dB, dC, dD, threads);                                                                             \
  }

EXPORT(float, float)
EXPORT(double, double)
