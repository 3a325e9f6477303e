// A Mamba block on the CPU, all but its last linear map: forward, and backward with nearly everything recomputed. The
// formula is in mamba.py, and so are the shapes.
//
// Everything of the size tokens x inner is made a channel at a time, where it is needed, and everything of the size
// tokens x inner x states a few tokens at a time: what is kept from the forward to the backward pass is u, delta's low
// rank, B and C. Channels are dealt out to threads. The states of a channel lie in one vector register or a few; along
// the tokens, where there is no recurrence, a vector holds successive tokens.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t SEGMENT = 64;          // tokens between two states that the backward pass keeps
constexpr int64_t CHUNK = 512;           // tokens that are projected at once
constexpr int64_t GROUP = int64_t(1) << 22;  // tokens x inner of the sequences that the backward pass takes at once
constexpr int64_t MOST_VECTORS = 16;     // of one channel's states

template <typename T>
struct Wide;
template <>
struct Wide<float> {
  typedef float V __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
};
template <>
struct Wide<double> {
  typedef double V __attribute__((vector_size(64)));
};
template <typename T>
using Vector = typename Wide<T>::V;
template <typename T>
constexpr int64_t LANES = 64 / sizeof(T);
using VF = Vector<float>;
using VD = Vector<double>;

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

inline float sum(VF v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half low, high;
  std::memcpy(&low, &v, 32), std::memcpy(&high, reinterpret_cast<const char*>(&v) + 32, 32);
  low += high;
  Quarter first, second;
  std::memcpy(&first, &low, 16), std::memcpy(&second, reinterpret_cast<const char*>(&low) + 16, 16);
  first += second;
  return (first[0] + first[1]) + (first[2] + first[3]);
}

inline double sum(VD v) {
  double total = 0;
  for (int i = 0; i < 8; ++i) total += v[i];
  return total;
}

// exp for x <= 0 by range reduction and a polynomial, about 1 ulp.
inline VF exponential(VF x) {
  x = x < -87.0f ? VF{} - 87.0f : x;
  const VF shifted = x * 1.44269504088896341f + 12582912.0f;
  const VF k = shifted - 12582912.0f;
  const VF r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  VF p = VF{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Wide<float>::I bits = (__builtin_convertvector(k, Wide<float>::I) + 127) << 23;
  VF scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

inline VD exponential(VD x) {
  for (int i = 0; i < 8; ++i) x[i] = std::exp(x[i]);
  return x;
}

// log(1 + v) for 0 <= v <= 1, as 2 artanh(v / (2 + v)).
inline VF logarithm(VF v) {
  const VF s = v / (v + 2.0f), q = s * s;
  VF p = VF{} + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2.0f * s * (p * q + 1.0f);
}

inline VD logarithm(VD v) {
  for (int i = 0; i < 8; ++i) v[i] = std::log1p(v[i]);
  return v;
}

template <typename V>
inline V sigmoid(V x) {
  const V e = exponential(x < 0 ? x : -x);
  return (x < 0 ? e : e * 0 + 1) / (e + 1);
}

// As torch has it: the identity beyond 20.
template <typename V>
inline V softplus(V x) {
  const V positive = x > 0 ? x : x * 0;
  return x > 20 ? x : positive + logarithm(exponential(x < 0 ? x : -x));
}

template <typename V>
inline V softplus_slope(V x) {
  return x > 20 ? x * 0 + 1 : sigmoid(x);
}

template <typename T>
struct Problem {
  int64_t sequences, tokens, outputs, width, inner, states, rank, taps, threads;
  const int64_t *lengths, *tails;
  const T *u, *in_proj, *kernel, *bias, *x_proj, *dt_proj, *dt_bias, *A, *D;
  T* kept;

  int64_t vectors() const { return (states + LANES<T> - 1) / LANES<T>; }
  int64_t padded() const { return vectors() * LANES<T>; }
  int64_t row() const { return tokens + LANES<T>; }  // of what is kept along the tokens
  T* across() const { return kept; }                 // u transposed [W, row]
  T* low() const { return kept + width * row(); }    // what delta is made of [R, row]
  T* B() const { return low() + rank * row(); }      // [T, padded]
  T* C() const { return B() + tokens * padded(); }   // [M, padded]
};

// Buffers along the tokens are longer than that, so that a last vector may run over.
template <typename T>
std::vector<T> buffer(int64_t tokens) {
  return std::vector<T>(tokens + 2 * LANES<T>, T(0));
}

template <typename T>
std::vector<T> padded_rows(const T* rows, int64_t count, int64_t states, int64_t padded) {
  std::vector<T> wide(count * padded, T(0));
  for (int64_t i = 0; i < count; ++i) std::copy_n(rows + i * states, states, wide.data() + i * padded);
  return wide;
}

// Subnormal numbers count as zero while this lives: what decays, decays through them, and they are slow on x86.
class NoSubnormals {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();

 public:
  NoSubnormals() { _mm_setcsr(before | 0x8040); }
  ~NoSubnormals() { _mm_setcsr(before); }
#else
 public:
  NoSubnormals() {}
#endif
};

template <typename Work>
void share(int64_t threads, int64_t items, Work work) {
  threads = std::max<int64_t>(1, std::min(threads, items));
  const auto part = [&](int64_t i) {
    NoSubnormals here;
    work(i, items * i / threads, items * (i + 1) / threads);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(part, i);
  part(0);
  for (auto& other : others) other.join();
}

// One channel's input to the convolution and its output, tokens a to b of the sequence that begins at `begin`:
// x_in[i] belongs to token a - (taps - 1) + i, and is zero before the sequence.
template <typename T>
void convolve(const Problem<T>& p, int64_t e, int64_t begin, int64_t a, int64_t b, T* x_in, T* c) {
  const int64_t before = p.taps - 1, first = std::max<int64_t>(a - before, 0), skipped = first - (a - before);
  std::fill_n(x_in, skipped, T(0));
  T* x = x_in + skipped;
  for (int64_t i = 0; i < b - first; i += LANES<T>) {
    Vector<T> v{};
    for (int64_t w = 0; w < p.width; ++w) v += p.in_proj[e * p.width + w] * load(p.across() + w * p.row() + begin + first + i);
    store(x + i, v);
  }
  for (int64_t i = 0; i < b - a; i += LANES<T>) {
    Vector<T> v = Vector<T>{} + p.bias[e];
    for (int64_t j = 0; j < p.taps; ++j) v += p.kernel[e * p.taps + j] * load(x_in + i + j);
    store(c + i, v);
  }
}

// low, B and C of tokens a to b of a sequence.
template <typename T>
void project(const Problem<T>& p, const std::vector<T>& to_B, const std::vector<T>& to_C, int64_t begin, int64_t a,
             int64_t b, int64_t output, int64_t tail, T* x_in, T* x) {
  const int64_t stride = CHUNK + 2 * LANES<T>, NP = p.padded(), vectors = p.vectors();
  for (int64_t e = 0; e < p.inner; ++e) {
    convolve(p, e, begin, a, b, x_in, x + e * stride);
    for (int64_t i = 0; i < b - a; i += LANES<T>) {
      const Vector<T> c = load(x + e * stride + i);
      store(x + e * stride + i, c * sigmoid(c));
    }
  }
  for (int64_t r = 0; r < p.rank; ++r)
    for (int64_t i = 0; i < b - a; i += LANES<T>) {
      Vector<T> v{};
      for (int64_t e = 0; e < p.inner; ++e) v += p.x_proj[r * p.inner + e] * load(x + e * stride + i);
      const int64_t some = std::min<int64_t>(LANES<T>, b - a - i);
      std::memcpy(p.low() + r * p.row() + begin + a + i, &v, some * sizeof(T));
    }
  for (int64_t i = 0; i < b - a; ++i)
    for (int64_t v = 0; v < vectors; ++v) {
      Vector<T> B{}, C{};
      for (int64_t e = 0; e < p.inner; ++e) B += x[e * stride + i] * load(to_B.data() + e * NP + v * LANES<T>);
      store(p.B() + (begin + a + i) * NP + v * LANES<T>, B);
      if (a + i < tail) continue;
      for (int64_t e = 0; e < p.inner; ++e) C += x[e * stride + i] * load(to_C.data() + e * NP + v * LANES<T>);
      store(p.C() + (output + a + i - tail) * NP + v * LANES<T>, C);
    }
}

// x_proj's rows from `first` on, transposed and padded: [E, padded].
template <typename T>
std::vector<T> transposed(const Problem<T>& p, int64_t first) {
  std::vector<T> rows(p.inner * p.padded(), T(0));
  for (int64_t n = 0; n < p.states; ++n)
    for (int64_t e = 0; e < p.inner; ++e) rows[e * p.padded() + n] = p.x_proj[(first + n) * p.inner + e];
  return rows;
}

// What a thread needs for a channel of one sequence.
template <typename T>
struct Channel {
  std::vector<T> x_in, c, x, pre, delta, z, gate;

  Channel(const Problem<T>& p, int64_t longest)
      : x_in(buffer<T>(longest + p.taps)), c(buffer<T>(longest)), x(buffer<T>(longest)), pre(buffer<T>(longest)),
        delta(buffer<T>(longest)), z(buffer<T>(longest)), gate(buffer<T>(longest)) {}

  void make(const Problem<T>& p, int64_t e, int64_t begin, int64_t length, int64_t tail) {
    convolve(p, e, begin, 0, length, x_in.data(), c.data());
    for (int64_t i = 0; i < length; i += LANES<T>) {
      const Vector<T> v = load(c.data() + i);
      store(x.data() + i, v * sigmoid(v));
      Vector<T> d = Vector<T>{} + p.dt_bias[e];
      for (int64_t r = 0; r < p.rank; ++r) d += p.dt_proj[e * p.rank + r] * load(p.low() + r * p.row() + begin + i);
      store(pre.data() + i, d);
      store(delta.data() + i, softplus(d));
    }
    for (int64_t i = 0; i < length - tail; i += LANES<T>) {
      Vector<T> v{};
      for (int64_t w = 0; w < p.width; ++w)
        v += p.in_proj[(p.inner + e) * p.width + w] * load(p.across() + w * p.row() + begin + tail + i);
      store(z.data() + i, v);
      store(gate.data() + i, sigmoid(v));
    }
  }
};

template <typename T, int64_t FIXED>
void scan_forward(const Problem<T>& p, const Channel<T>& channel, const T* A_row, T D, const T* B, const T* C,
                  int64_t length, int64_t tail, T* y) {
  using V = Vector<T>;
  const int64_t vectors = FIXED ? FIXED : p.vectors();
  V A[FIXED ? FIXED : MOST_VECTORS], h[FIXED ? FIXED : MOST_VECTORS];
  for (int64_t v = 0; v < vectors; ++v) A[v] = load(A_row + v * LANES<T>), h[v] = V{};
  for (int64_t t = 0; t < length; ++t) {
    const T d = channel.delta[t], step = d * channel.x[t];
    for (int64_t v = 0; v < vectors; ++v, B += LANES<T>) h[v] = exponential(d * A[v]) * h[v] + step * load(B);
    if (t < tail) continue;
    V total{};
    for (int64_t v = 0; v < vectors; ++v, C += LANES<T>) total += load(C) * h[v];
    y[t - tail] = sum(total) + D * channel.x[t];
  }
}

// The gradients of a scan: dx and ddelta of the tokens; dB and dC, a row a token, and dA, a row, are added to. y comes
// with them, for the gate's gradient. Returns that of D.
template <typename T, int64_t FIXED>
T scan_backward(const Problem<T>& p, const Channel<T>& channel, const T* A_row, T D, const T* B, const T* C,
                int64_t length, int64_t tail, const T* dy, T* y, T* dx, T* ddelta, T* dA_row, T* dB, T* dC,
                std::vector<T>& entry) {
  using V = Vector<T>;
  constexpr int64_t MOST = FIXED ? FIXED : MOST_VECTORS;
  const int64_t vectors = FIXED ? FIXED : p.vectors(), NP = vectors * LANES<T>;
  const int64_t segments = (length + SEGMENT - 1) / SEGMENT;
  V A[MOST], dA[MOST], g[MOST], now[MOST];
  static thread_local std::vector<T> states, decays;  // of one segment
  states.resize((SEGMENT + 1) * NP), decays.resize(SEGMENT * NP), entry.resize(segments * NP);
  for (int64_t v = 0; v < vectors; ++v) A[v] = load(A_row + v * LANES<T>), dA[v] = g[v] = now[v] = V{};
  for (int64_t t = 0; t < (segments - 1) * SEGMENT; ++t) {
    if (t % SEGMENT == 0)
      for (int64_t v = 0; v < vectors; ++v) store(entry.data() + t / SEGMENT * NP + v * LANES<T>, now[v]);
    const T d = channel.delta[t], step = d * channel.x[t];
    for (int64_t v = 0; v < vectors; ++v)
      now[v] = exponential(d * A[v]) * now[v] + step * load(B + t * NP + v * LANES<T>);
  }
  for (int64_t v = 0; v < vectors; ++v) store(entry.data() + (segments - 1) * NP + v * LANES<T>, now[v]);
  T sum_D = 0;
  for (int64_t i = segments - 1; i >= 0; --i) {
    const int64_t first = i * SEGMENT, last = std::min(first + SEGMENT, length);
    for (int64_t v = 0; v < vectors; ++v) {
      now[v] = load(entry.data() + i * NP + v * LANES<T>);
      store(states.data() + v * LANES<T>, now[v]);
    }
    for (int64_t t = first; t < last; ++t) {
      const T d = channel.delta[t], step = d * channel.x[t];
      for (int64_t v = 0; v < vectors; ++v) {
        const V a = exponential(d * A[v]);
        now[v] = a * now[v] + step * load(B + t * NP + v * LANES<T>);
        store(decays.data() + (t - first) * NP + v * LANES<T>, a);
        store(states.data() + (t - first + 1) * NP + v * LANES<T>, now[v]);
      }
    }
    for (int64_t t = last - 1; t >= first; --t) {
      const T d = channel.delta[t], xt = channel.x[t], step = d * xt;
      const T *before = states.data() + (t - first) * NP, *decay = decays.data() + (t - first) * NP;
      T direct = 0;
      if (t >= tail) {
        const T dyt = dy[t - tail];
        V total{};
        for (int64_t v = 0; v < vectors; ++v) {
          const V Cv = load(C + (t - tail) * NP + v * LANES<T>), after = load(before + NP + v * LANES<T>);
          T* dCv = dC + (t - tail) * NP + v * LANES<T>;
          total += Cv * after;
          g[v] += Cv * dyt;
          store(dCv, load(dCv) + dyt * after);
        }
        y[t - tail] = sum(total) + D * xt;
        direct = D * dyt;
        sum_D += dyt * xt;
      }
      V to_step{}, to_d{};
      for (int64_t v = 0; v < vectors; ++v) {
        const V through = g[v] * load(decay + v * LANES<T>), carried = through * load(before + v * LANES<T>);
        T* dBv = dB + t * NP + v * LANES<T>;
        to_step += g[v] * load(B + t * NP + v * LANES<T>);
        to_d += carried * A[v];
        dA[v] += carried * d;
        store(dBv, load(dBv) + g[v] * step);
        g[v] = through;
      }
      const T of_step = sum(to_step);
      dx[t] = direct + of_step * d;
      ddelta[t] = sum(to_d) + of_step * xt;
    }
  }
  for (int64_t v = 0; v < vectors; ++v) store(dA_row + v * LANES<T>, load(dA_row + v * LANES<T>) + dA[v]);
  return sum_D;
}

template <typename T>
int64_t longest(const Problem<T>& p) {
  return *std::max_element(p.lengths, p.lengths + p.sequences);
}

// y ⊙ silu(z), [E, M]
template <typename T>
void forward(const Problem<T>& p, T* gated) {
  for (int64_t w = 0; w < p.width; ++w) {
    T* row = p.across() + w * p.row();
    for (int64_t t = 0; t < p.tokens; ++t) row[t] = p.u[t * p.width + w];
    std::fill_n(row + p.tokens, LANES<T>, T(0));
  }
  for (int64_t r = 0; r < p.rank; ++r) std::fill_n(p.low() + r * p.row() + p.tokens, LANES<T>, T(0));
  struct Piece {
    int64_t begin, a, b, output, tail;
  };
  std::vector<Piece> pieces;
  for (int64_t s = 0, begin = 0, output = 0; s < p.sequences; begin += p.lengths[s], output += p.tails[s], ++s)
    for (int64_t a = 0; a < p.lengths[s]; a += CHUNK)
      pieces.push_back({begin, a, std::min(a + CHUNK, p.lengths[s]), output, p.lengths[s] - p.tails[s]});
  const std::vector<T> to_B = transposed(p, p.rank), to_C = transposed(p, p.rank + p.states);
  share(p.threads, pieces.size(), [&](int64_t, int64_t from, int64_t to) {
    std::vector<T> x_in = buffer<T>(CHUNK + p.taps), x(p.inner * (CHUNK + 2 * LANES<T>));
    for (int64_t i = from; i < to; ++i) {
      const Piece& piece = pieces[i];
      project(p, to_B, to_C, piece.begin, piece.a, piece.b, piece.output, piece.tail, x_in.data(), x.data());
    }
  });
  const std::vector<T> A = padded_rows(p.A, p.inner, p.states, p.padded());
  const int64_t NP = p.padded();
  share(p.threads, p.inner, [&](int64_t, int64_t from, int64_t to) {
    Channel<T> channel(p, longest(p));
    for (int64_t s = 0, begin = 0, output = 0; s < p.sequences; begin += p.lengths[s], output += p.tails[s], ++s) {
      const int64_t length = p.lengths[s], tail = length - p.tails[s];
      const T *B = p.B() + begin * NP, *C = p.C() + output * NP;
      for (int64_t e = from; e < to; ++e) {
        channel.make(p, e, begin, length, tail);
        T* y = gated + e * p.outputs + output;
        const auto scan = p.vectors() == 1 ? scan_forward<T, 1> : scan_forward<T, 0>;
        scan(p, channel, A.data() + e * NP, p.D[e], B, C, length, tail, y);
        for (int64_t i = 0; i < length - tail; ++i) y[i] *= channel.z[i] * channel.gate[i];
      }
    }
  });
}

template <typename T>
struct Gradients {
  T *u, *in_proj, *kernel, *bias, *x_proj, *dt_proj, *dt_bias, *A, *D;  // zero at first
};

// What a thread adds up by itself, over the sequences of a group.
template <typename T>
struct Own {
  std::vector<T> u, low, B, C;

  void add(const Own& other) {
    for (auto [mine, theirs] : {std::pair{&low, &other.low}, {&B, &other.B}, {&C, &other.C}})
      for (size_t i = 0; i < mine->size(); ++i) (*mine)[i] += (*theirs)[i];
  }
};

template <typename T>
void backward_group(const Problem<T>& p, int64_t from_s, int64_t to_s, int64_t begin_0, int64_t output_0,
                    const std::vector<T>& A, const T* dgated, const Gradients<T>& d, std::vector<T>& dA) {
  const int64_t NP = p.padded();
  int64_t tokens = 0, outputs = 0, most = 0;
  for (int64_t s = from_s; s < to_s; ++s)
    tokens += p.lengths[s], outputs += p.tails[s], most = std::max(most, p.lengths[s]);
  const int64_t row = tokens + 2 * LANES<T>, threads = std::max<int64_t>(1, std::min(p.threads, p.inner));
  std::vector<Own<T>> own(threads);
  std::vector<T> dx(p.inner * tokens);

  // From the gated output to x as the scan sees it, delta's low rank, B and C.
  share(threads, p.inner, [&](int64_t thread, int64_t from, int64_t to) {
    Own<T>& mine = own[thread];
    mine.u.assign(p.width * row, T(0)), mine.low.assign(p.rank * row, T(0));
    mine.B.assign(tokens * NP, T(0)), mine.C.assign(outputs * NP, T(0));
    Channel<T> channel(p, most);
    std::vector<T> dy = buffer<T>(most), y = buffer<T>(most), ddelta = buffer<T>(most), entry;
    for (int64_t s = from_s, begin = 0, output = 0; s < to_s; begin += p.lengths[s], output += p.tails[s], ++s) {
      const int64_t length = p.lengths[s], tail = length - p.tails[s];
      for (int64_t e = from; e < to; ++e) {
        channel.make(p, e, begin_0 + begin, length, tail);
        const T* dg = dgated + e * p.outputs + output_0 + output;
        for (int64_t i = 0; i < length - tail; ++i) dy[i] = dg[i] * channel.z[i] * channel.gate[i];
        const auto scan = p.vectors() == 1 ? scan_backward<T, 1> : scan_backward<T, 0>;
        d.D[e] += scan(p, channel, A.data() + e * NP, p.D[e], p.B() + (begin_0 + begin) * NP,
                       p.C() + (output_0 + output) * NP, length, tail, dy.data(), y.data(), dx.data() + e * tokens + begin,
                       ddelta.data(), dA.data() + e * NP, mine.B.data() + begin * NP, mine.C.data() + output * NP, entry);
        for (int64_t i = 0; i < length - tail; ++i) {  // dz, in y's place
          const T gate = channel.gate[i];
          y[i] *= dg[i] * gate * (1 + channel.z[i] * (1 - gate));
        }
        std::fill_n(y.data() + length - tail, LANES<T>, T(0));
        for (int64_t w = 0; w < p.width; ++w) {
          const T weight = p.in_proj[(p.inner + e) * p.width + w];
          const T* u = p.across() + w * p.row() + begin_0 + begin + tail;
          T* du = mine.u.data() + w * row + begin + tail;
          Vector<T> total{};
          for (int64_t i = 0; i < length - tail; i += LANES<T>) {
            const Vector<T> dz = load(y.data() + i);
            total += dz * load(u + i);
            store(du + i, load(du + i) + weight * dz);
          }
          d.in_proj[(p.inner + e) * p.width + w] += sum(total);
        }
        std::fill_n(ddelta.data() + length, LANES<T>, T(0));
        Vector<T> to_bias{};
        for (int64_t i = 0; i < length; i += LANES<T>) {
          const Vector<T> dpre = load(ddelta.data() + i) * softplus_slope(load(channel.pre.data() + i));
          store(ddelta.data() + i, dpre);
          to_bias += dpre;
        }
        d.dt_bias[e] += sum(to_bias);
        for (int64_t r = 0; r < p.rank; ++r) {
          const T weight = p.dt_proj[e * p.rank + r];
          const T* low = p.low() + r * p.row() + begin_0 + begin;
          T* dlow = mine.low.data() + r * row + begin;
          Vector<T> total{};
          for (int64_t i = 0; i < length; i += LANES<T>) {
            const Vector<T> dpre = load(ddelta.data() + i);
            total += dpre * load(low + i);
            store(dlow + i, load(dlow + i) + weight * dpre);
          }
          d.dt_proj[e * p.rank + r] += sum(total);
        }
      }
    }
  });
  for (int64_t i = 1; i < threads; ++i) own[0].add(own[i]);
  std::vector<T> dB(p.states * row, T(0)), dC(p.states * (outputs + 2 * LANES<T>), T(0));  // along the tokens
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t n = 0; n < p.states; ++n) dB[n * row + t] = own[0].B[t * NP + n];
  const int64_t row_C = outputs + 2 * LANES<T>;
  for (int64_t m = 0; m < outputs; ++m)
    for (int64_t n = 0; n < p.states; ++n) dC[n * row_C + m] = own[0].C[m * NP + n];

  // From there, through x_proj and the convolution, to u.
  share(threads, p.inner, [&](int64_t thread, int64_t from, int64_t to) {
    Own<T>& mine = own[thread];
    std::vector<T> x_in = buffer<T>(most + p.taps), x = buffer<T>(most), slope = buffer<T>(most);
    std::vector<T> behind = buffer<T>(most + p.taps);  // d x, later d c, with zeros behind the sequence's end
    for (int64_t s = from_s, begin = 0, output = 0; s < to_s; begin += p.lengths[s], output += p.tails[s], ++s) {
      const int64_t length = p.lengths[s], tail = length - p.tails[s];
      for (int64_t e = from; e < to; ++e) {
        convolve(p, e, begin_0 + begin, 0, length, x_in.data(), x.data());
        for (int64_t i = 0; i < length; i += LANES<T>) {
          const Vector<T> c = load(x.data() + i), gate = sigmoid(c);
          store(x.data() + i, c * gate);
          store(slope.data() + i, gate * (1 + c * (1 - gate)));
        }
        std::fill_n(x.data() + length, LANES<T>, T(0));
        T* g = behind.data();
        std::copy_n(dx.data() + e * tokens + begin, length, g);
        const auto through = [&](const T* dp, int64_t k, int64_t a, int64_t b) {  // row k of x_proj, tokens a to b
          const T weight = p.x_proj[k * p.inner + e];
          Vector<T> total{};
          int64_t i = a;
          for (; i + LANES<T> <= b; i += LANES<T>) {
            const Vector<T> v = load(dp + i - a);
            store(g + i, load(g + i) + weight * v);
            total += v * load(x.data() + i);
          }
          T rest = 0;
          for (; i < b; ++i) g[i] += weight * dp[i - a], rest += dp[i - a] * x[i];
          d.x_proj[k * p.inner + e] += sum(total) + rest;
        };
        for (int64_t a = 0; a < length; a += CHUNK) {
          const int64_t b = std::min(a + CHUNK, length), c = std::max(a, tail);
          for (int64_t r = 0; r < p.rank; ++r) through(own[0].low.data() + r * row + begin + a, r, a, b);
          for (int64_t n = 0; n < p.states; ++n) through(dB.data() + n * row + begin + a, p.rank + n, a, b);
          if (c >= b) continue;
          for (int64_t n = 0; n < p.states; ++n)
            through(dC.data() + n * row_C + output + c - tail, p.rank + p.states + n, c, b);
        }
        std::fill_n(g + length, p.taps + LANES<T>, T(0));
        Vector<T> to_bias{};
        for (int64_t i = 0; i < length; i += LANES<T>) {
          const Vector<T> dc = load(g + i) * load(slope.data() + i);
          store(g + i, dc);
          to_bias += dc;
        }
        std::fill_n(g + length, p.taps + LANES<T>, T(0));
        d.bias[e] += sum(to_bias);
        for (int64_t j = 0; j < p.taps; ++j) {
          Vector<T> total{};
          for (int64_t i = 0; i < length; i += LANES<T>) total += load(g + i) * load(x_in.data() + i + j);
          d.kernel[e * p.taps + j] += sum(total);
        }
        for (int64_t i = 0; i < length; i += LANES<T>) {  // d x_in, in x's place
          Vector<T> v{};
          for (int64_t j = 0; j < p.taps; ++j) v += p.kernel[e * p.taps + j] * load(g + i + p.taps - 1 - j);
          store(x.data() + i, v);
        }
        std::fill_n(x.data() + length, LANES<T>, T(0));
        for (int64_t w = 0; w < p.width; ++w) {
          const T weight = p.in_proj[e * p.width + w];
          const T* u = p.across() + w * p.row() + begin_0 + begin;
          T* du = mine.u.data() + w * row + begin;
          Vector<T> total{};
          for (int64_t i = 0; i < length; i += LANES<T>) {
            const Vector<T> v = load(x.data() + i);
            total += v * load(u + i);
            store(du + i, load(du + i) + weight * v);
          }
          d.in_proj[e * p.width + w] += sum(total);
        }
      }
    }
  });
  for (const Own<T>& each : own)
    for (int64_t w = 0; w < p.width; ++w)
      for (int64_t t = 0; t < tokens; ++t) d.u[(begin_0 + t) * p.width + w] += each.u[w * row + t];
}

template <typename T>
void backward(const Problem<T>& p, const T* dgated, const Gradients<T>& d) {
  const std::vector<T> A = padded_rows(p.A, p.inner, p.states, p.padded());
  std::vector<T> dA(p.inner * p.padded(), T(0));
  int64_t begin = 0, output = 0;
  for (int64_t s = 0; s < p.sequences;) {
    int64_t end = s, tokens = 0, outputs = 0;
    do tokens += p.lengths[end], outputs += p.tails[end], ++end;
    while (end < p.sequences && (tokens + p.lengths[end]) * p.inner <= GROUP);
    backward_group(p, s, end, begin, output, A, dgated, d, dA);
    s = end, begin += tokens, output += outputs;
  }
  for (int64_t e = 0; e < p.inner; ++e) std::copy_n(dA.data() + e * p.padded(), p.states, d.A + e * p.states);
}

}  // namespace

// Sizes: sequences, tokens, outputs, width, inner, states, rank, taps, threads. Inputs: u, in_proj, kernel, bias, x_proj,
// dt_proj, dt_bias, A, D, and what is kept; the gradients come in the inputs' order.
#define EXPORT(T, suffix)                                                                                            \
  Problem<T> problem_##suffix(const int64_t* n, const int64_t* lengths, const int64_t* tails, T** in) {              \
    return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], lengths, tails, in[0], in[1], in[2], in[3], in[4], \
            in[5], in[6], in[7], in[8], in[9]};                                                                      \
  }                                                                                                                  \
  extern "C" void forward_##suffix(const int64_t* n, const int64_t* lengths, const int64_t* tails, T** in, T* out) { \
    forward<T>(problem_##suffix(n, lengths, tails, in), out);                                                        \
  }                                                                                                                  \
  extern "C" void backward_##suffix(const int64_t* n, const int64_t* lengths, const int64_t* tails, T** in,          \
                                    const T* dout, T** d) {                                                          \
    backward<T>(problem_##suffix(n, lengths, tails, in), dout,                                                       \
                {d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8]});                                              \
  }

EXPORT(float, float)
EXPORT(double, double)
