/* What hosts spend their time in, for activations of many members (see __init__.py).

   An activation is [members, units, places, channels], contiguous: one unit is what is limited and normalised together
   (a sample of images, a token, a vector), its places are the pixels of its map. Everything of one member lies together,
   so that a member's share of a call stays in the cache.

   A kernel works on the members (of a slot, the seeds) from begin on and before end: threads share them.

   Comparisons are written so that a NaN passes where torch lets it pass: a broken member must be seen. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define STRIP 64 /* floats that statistics are summed over side by side: one alone would wait for its own last sum */

/* Channels computed with at once; the compiler turns them into the widest registers that the processor has. */
typedef float lanes1 __attribute__((vector_size(4), may_alias));
typedef float lanes4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float lanes8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float lanes16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t bits1 __attribute__((vector_size(4)));
typedef int32_t bits4 __attribute__((vector_size(16)));
typedef int32_t bits8 __attribute__((vector_size(32)));
#define VECTORS(LANES, width) ((width) / (int64_t)(sizeof(LANES) / sizeof(float)))
#define AT(LANES, values, offset) ((const LANES *)((values) + (offset)))
#define TO(LANES, values, offset) ((LANES *)((values) + (offset)))
/* x where it is not negative (a NaN is not), else 0; likewise x where z is not 0 or less. */
#define RECTIFIED(LANES, BITS, x) ((LANES)((BITS)(x) & ~(BITS)((x) < 0.0f)))
#define PASSED(LANES, BITS, x, z) ((LANES)((BITS)(x) & ~(BITS)((z) <= 0.0f)))

/* Widths with code of their own; any other takes the general one. */
#define BY_WIDTH(C, ...)                                                                                               \
    switch (C) {                                                                                                       \
    case 4: { enum { W = 4 }; __VA_ARGS__; } break;                                                                    \
    case 8: { enum { W = 8 }; __VA_ARGS__; } break;                                                                    \
    case 16: { enum { W = 16 }; __VA_ARGS__; } break;                                                                  \
    case 32: { enum { W = 32 }; __VA_ARGS__; } break;                                                                  \
    case 64: { enum { W = 64 }; __VA_ARGS__; } break;                                                                  \
    default: { const int64_t W = (C); __VA_ARGS__; }                                                                   \
    }

/* RUN(lanes, channels, sums that fit into the registers, first channel) for one part of the channels after another. */
#define BY_CHUNKS(channels, RUN)                                                                                       \
    for (int64_t first = 0; first < (channels);) {                                                                     \
        const int64_t rest = (channels)-first;                                                                         \
        if (rest >= 32) {                                                                                              \
            RUN(eight, 32, 4, first)                                                                                   \
            first += 32;                                                                                               \
        } else if (rest >= 16) {                                                                                       \
            RUN(eight, 16, 8, first)                                                                                   \
            first += 16;                                                                                               \
        } else if (rest >= 8) {                                                                                        \
            RUN(eight, 8, 8, first)                                                                                    \
            first += 8;                                                                                                \
        } else if (rest >= 4) {                                                                                        \
            RUN(four, 4, 8, first)                                                                                     \
            first += 4;                                                                                                \
        } else {                                                                                                       \
            RUN(one, rest, 1, first)                                                                                   \
            first += rest;                                                                                             \
        }                                                                                                              \
    }

INLINE float rectified(float x) { return x < 0.0f ? 0.0f : x; }

/* exp(y) - 1 over exp(y) + 1 with y = 2x; near 0 a polynomial, where that loses digits. Coefficients: least squares at
   Chebyshev nodes. Relative error below 2e-7. */
INLINE float hyperbolic_tangent(float x) {
    float a = x > 9.02f ? 9.02f : x;
    a = a < -9.02f ? -9.02f : a;
    const float s = a * a;
    const float odd =
        a + a * s * (-0.33333333f +
                     s * (0.13333253f + s * (-0.05394857f + s * (0.02169165f + s * (-0.00811871f + s * 0.00206485f)))));
    const float y = a * 2.8853900818f, shifted = y + 12582912.0f, k = shifted - 12582912.0f, f = y - k;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4B400000 + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    const float e =
        power * (1.0f + f * (0.693147181f +
                             f * (0.240226509f +
                                  f * (0.0555041091f +
                                       f * (0.00961805667f +
                                            f * (0.00133334785f + f * (0.000154614475f + f * 1.53037023e-5f)))))));
    const float far = 1.0f - 2.0f / (e + 1.0f);
    return s < 0.49f ? odd : far;
}

/* ------------------------------------------------------------------ convolution, stride 1, same size */

/* Weights are [taps, inputs, outputs]: an output pixel is a sum of rows of W of the `outputs` channels, taken from the
   taps that lie on the map. Several are summed side by side, so that the sums stay in registers and none waits for its own
   last one: of small maps the same pixel of several units, of large ones neighbours in a row, on a padded image; of a
   weight's gradient several inputs. */
#define CONVOLUTION(NAME, LANES, BITS)                                                                                 \
    INLINE void pixels_##NAME(const float *restrict x, const float *restrict w, const float *restrict bias,            \
                              float *restrict y, int64_t rows, int64_t columns, int64_t k, int64_t inputs,             \
                              int64_t outputs, int64_t relu, const int64_t units, const int64_t W) {                   \
        const int64_t half = k / 2, in = rows * columns * inputs, out = rows * columns * outputs;                      \
        const int64_t vectors = VECTORS(LANES, W);                                                                     \
        for (int64_t r = 0; r < rows; r++)                                                                             \
            for (int64_t c = 0; c < columns; c++) {                                                                    \
                LANES sum[units][vectors];                                                                             \
                UNROLL for (int64_t u = 0; u < units; u++)                                                             \
                    UNROLL for (int64_t j = 0; j < vectors; j++)                                                       \
                        sum[u][j] = bias ? AT(LANES, bias, 0)[j] : (LANES){0};                                         \
                for (int64_t a = r < half ? half - r : 0; a < k && r + a - half < rows; a++)                           \
                    for (int64_t b = c < half ? half - c : 0; b < k && c + b - half < columns; b++) {                  \
                        const float *restrict v = x + ((r + a - half) * columns + c + b - half) * inputs;              \
                        for (int64_t i = 0; i < inputs; i++)                                                           \
                            UNROLL for (int64_t j = 0; j < vectors; j++) {                                             \
                                const LANES weight = AT(LANES, w, ((a * k + b) * inputs + i) * outputs)[j];            \
                                UNROLL for (int64_t u = 0; u < units; u++) sum[u][j] += v[u * in + i] * weight;        \
                            }                                                                                          \
                    }                                                                                                  \
                UNROLL for (int64_t u = 0; u < units; u++)                                                             \
                    UNROLL for (int64_t j = 0; j < vectors; j++)                                                       \
                        TO(LANES, y, u * out + (r * columns + c) * outputs)[j] =                                       \
                            relu ? RECTIFIED(LANES, BITS, sum[u][j]) : sum[u][j];                                      \
            }                                                                                                          \
    }                                                                                                                  \
    INLINE void row_##NAME(const float *restrict padded, const float *restrict w, const float *restrict bias,          \
                           float *restrict y, int64_t columns, int64_t k, int64_t inputs, int64_t outputs,             \
                           int64_t relu, const int64_t number, const int64_t W) {                                      \
        const int64_t line = (columns + k - 1) * inputs, vectors = VECTORS(LANES, W);                                  \
        for (int64_t done = 0; done < columns; done += number) {                                                       \
            const int64_t c = done + number <= columns ? done : columns - number; /* the last ones twice */            \
            LANES sum[number][vectors];                                                                                \
            UNROLL for (int64_t n = 0; n < number; n++)                                                                \
                UNROLL for (int64_t j = 0; j < vectors; j++)                                                           \
                    sum[n][j] = bias ? AT(LANES, bias, 0)[j] : (LANES){0};                                             \
            for (int64_t a = 0; a < k; a++)                                                                            \
                for (int64_t b = 0; b < k; b++) {                                                                      \
                    const float *restrict v = padded + a * line + (c + b) * inputs;                                    \
                    for (int64_t i = 0; i < inputs; i++)                                                               \
                        UNROLL for (int64_t j = 0; j < vectors; j++) {                                                 \
                            const LANES weight = AT(LANES, w, ((a * k + b) * inputs + i) * outputs)[j];                \
                            UNROLL for (int64_t n = 0; n < number; n++) sum[n][j] += v[n * inputs + i] * weight;       \
                        }                                                                                              \
                }                                                                                                      \
            UNROLL for (int64_t n = 0; n < number; n++)                                                                \
                UNROLL for (int64_t j = 0; j < vectors; j++)                                                           \
                    TO(LANES, y, (c + n) * outputs)[j] = relu ? RECTIFIED(LANES, BITS, sum[n][j]) : sum[n][j];         \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void taps_##NAME(const float *restrict x, const float *restrict dy, float *restrict dw, int64_t units,      \
                            int64_t rows, int64_t columns, int64_t k, int64_t inputs, int64_t outputs,                 \
                            const int64_t number, const int64_t W) {                                                   \
        const int64_t half = k / 2, vectors = VECTORS(LANES, W);                                                       \
        for (int64_t a = 0; a < k; a++)                                                                                \
            for (int64_t b = 0; b < k; b++) {                                                                          \
                const int64_t top = a < half ? half - a : 0, bottom = a > half ? rows - (a - half) : rows;             \
                const int64_t left = b < half ? half - b : 0, right = b > half ? columns - (b - half) : columns;       \
                const int64_t away = (a - half) * columns + b - half;                                                  \
                float *restrict to = dw + (a * k + b) * inputs * outputs;                                              \
                LANES sum[number][vectors];                                                                            \
                UNROLL for (int64_t i = 0; i < number; i++)                                                            \
                    UNROLL for (int64_t j = 0; j < vectors; j++) sum[i][j] = AT(LANES, to, i * outputs)[j];            \
                for (int64_t u = 0; u < units; u++)                                                                    \
                    for (int64_t r = top; r < bottom; r++)                                                             \
                        for (int64_t c = left; c < right; c++) {                                                       \
                            const int64_t at = (u * rows + r) * columns + c;                                           \
                            const float *restrict v = x + (at + away) * inputs;                                        \
                            UNROLL for (int64_t j = 0; j < vectors; j++) {                                             \
                                const LANES gradient = AT(LANES, dy, at * outputs)[j];                                 \
                                UNROLL for (int64_t i = 0; i < number; i++) sum[i][j] += v[i] * gradient;              \
                            }                                                                                          \
                        }                                                                                              \
                UNROLL for (int64_t i = 0; i < number; i++)                                                            \
                    UNROLL for (int64_t j = 0; j < vectors; j++) TO(LANES, to, i * outputs)[j] = sum[i][j];            \
            }                                                                                                          \
    }
CONVOLUTION(one, lanes1, bits1)
CONVOLUTION(four, lanes4, bits4)
CONVOLUTION(eight, lanes8, bits8)

/* The pixels whose mean is the output q: one, or the four of a 2×2 window. */
INLINE void window(int64_t q, int64_t columns, int64_t pool, int64_t at[4]) {
    const int64_t half = columns / 2, corner = pool ? q / half * 2 * columns + q % half * 2 : q;
    at[0] = corner, at[1] = corner + 1, at[2] = corner + columns, at[3] = corner + columns + 1;
}

#define POOL(NAME, LANES)                                                                                              \
    INLINE void pool_##NAME(const float *restrict x, float *restrict y, int64_t images, int64_t rows, int64_t columns, \
                            int64_t channels, const int64_t W) {                                                       \
        const int64_t places = rows * columns, outputs = (rows / 2) * (columns / 2);                                   \
        for (int64_t i = 0; i < images; i++)                                                                           \
            for (int64_t q = 0; q < outputs; q++) {                                                                    \
                int64_t at[4];                                                                                         \
                window(q, columns, 1, at);                                                                             \
                const float *restrict of = x + i * places * channels;                                                  \
                UNROLL for (int64_t j = 0; j < VECTORS(LANES, W); j++)                                                 \
                    TO(LANES, y, (i * outputs + q) * channels)[j] =                                                    \
                        (AT(LANES, of, at[0] * channels)[j] + AT(LANES, of, at[1] * channels)[j] +                     \
                         AT(LANES, of, at[2] * channels)[j] + AT(LANES, of, at[3] * channels)[j]) * 0.25f;             \
            }                                                                                                          \
    }
POOL(one, lanes1)
POOL(four, lanes4)
POOL(eight, lanes8)

enum { LARGE = 8 };    /* Columns from which on a map is convolved row by row. */
enum { TOGETHER = 8 }; /* Units that a convolution takes together: as many as it sums up side by side at most. */

/* An image with half a kernel of zeros around it. */
INLINE void pad(const float *restrict x, float *restrict padded, int64_t rows, int64_t columns, int64_t k,
                int64_t inputs) {
    const int64_t half = k / 2, line = (columns + k - 1) * inputs;
    memset(padded, 0, (rows + k - 1) * line * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        memcpy(padded + (r + half) * line + half * inputs, x + r * columns * inputs, columns * inputs * sizeof(float));
}

/* weight [members, k, k, inputs, outputs], bias [members, outputs] or none. x_member: floats from one member's images to
   the next one's, 0 where all members share them. pool: what is wanted are 2×2 means. */
void conv_forward(const float *x, int64_t x_member, const float *weight, const float *bias, float *y, int64_t units,
                  int64_t rows, int64_t columns, int64_t k, int64_t inputs, int64_t outputs, int64_t relu, int64_t pool,
                  int64_t begin, int64_t end) {
    const int64_t in = rows * columns * inputs, pixels = rows * columns * outputs;
    const int64_t out = pool ? (rows / 2) * (columns / 2) * outputs : pixels, line = (columns + k - 1) * inputs;
    float *padded = columns >= LARGE ? malloc((rows + k - 1) * line * sizeof(float)) : 0;
    float *pooled = pool ? malloc(TOGETHER * pixels * sizeof(float)) : 0;
    for (int64_t m = begin; m < end; m++) {
        const float *of = x + m * x_member, *w = weight + m * k * k * inputs * outputs;
        const float *b = bias ? bias + m * outputs : 0;
        for (int64_t start = 0; start < units; start += TOGETHER) {
            const int64_t number = units - start < TOGETHER ? units - start : TOGETHER;
            float *at = y + (m * units + start) * out, *to = pooled ? pooled : at;
            const float *from = of + start * in;
            for (int64_t u = 0; columns >= LARGE && u < number; u++) {
                pad(from + u * in, padded, rows, columns, k, inputs);
#define RUN(NAME, W, N, first)                                                                                         \
    for (int64_t r = 0; r < rows; r++)                                                                                 \
        row_##NAME(padded + r * line, w + first, b ? b + first : 0, to + u * pixels + r * columns * outputs + first,   \
                   columns, k, inputs, outputs, relu, N, W);
                BY_CHUNKS(outputs, RUN)
#undef RUN
            }
#define RUN(NAME, W, N, first)                                                                                         \
    for (int64_t u = 0; columns < LARGE && u < number;)                                                                \
        if (u + N <= number) {                                                                                         \
            pixels_##NAME(from + u * in, w + first, b ? b + first : 0, to + u * pixels + first, rows, columns, k,      \
                          inputs, outputs, relu, N, W);                                                                \
            u += N;                                                                                                    \
        } else {                                                                                                       \
            pixels_##NAME(from + u * in, w + first, b ? b + first : 0, to + u * pixels + first, rows, columns, k,      \
                          inputs, outputs, relu, 1, W);                                                                \
            u += 1;                                                                                                    \
        }
            BY_CHUNKS(outputs, RUN)
#undef RUN
#define RUN(NAME, W, N, first) pool_##NAME(pooled + first, at + first, number, rows, columns, outputs, W);
            if (pooled) BY_CHUNKS(outputs, RUN)
#undef RUN
        }
    }
    free(padded);
    free(pooled);
}

/* dx: the convolution of dy by the weights turned around. */
void conv_backward_input(const float *dy, const float *weight, float *dx, int64_t units, int64_t rows, int64_t columns,
                         int64_t k, int64_t inputs, int64_t outputs, int64_t begin, int64_t end) {
    const int64_t taps = k * k, in = rows * columns * inputs, out = rows * columns * outputs;
    float *turned = malloc(taps * inputs * outputs * sizeof(float));
    for (int64_t m = begin; m < end; m++) {
        const float *restrict w = weight + m * taps * inputs * outputs;
        for (int64_t t = 0; t < taps; t++)
            for (int64_t i = 0; i < inputs; i++)
                for (int64_t o = 0; o < outputs; o++)
                    turned[((taps - 1 - t) * outputs + o) * inputs + i] = w[(t * inputs + i) * outputs + o];
        conv_forward(dy + m * units * out, 0, turned, 0, dx + m * units * in, units, rows, columns, k, outputs, inputs,
                     0, 0, 0, 1);
    }
    free(turned);
}

enum { PIXELS = 256 }; /* Pixels that a weight's gradient is summed over in one go: they stay in the cache. */

/* dw [members, k, k, inputs, outputs], dbias [members, outputs] or none. */
void conv_backward_weight(const float *x, const float *dy, float *dw, float *dbias, int64_t units, int64_t rows,
                          int64_t columns, int64_t k, int64_t inputs, int64_t outputs, int64_t begin, int64_t end) {
    const int64_t places = rows * columns, in = places * inputs, out = places * outputs;
    const int64_t together = places < PIXELS ? PIXELS / places : 1;
    for (int64_t m = begin; m < end; m++) {
        float *to = dw + m * k * k * inputs * outputs;
        memset(to, 0, k * k * inputs * outputs * sizeof(float));
        for (int64_t start = 0; start < units; start += together) {
            const int64_t number = units - start < together ? units - start : together;
            const float *of = x + (m * units + start) * in, *g = dy + (m * units + start) * out;
#define RUN(NAME, W, N, first)                                                                                         \
    for (int64_t i = 0; i < inputs;)                                                                                   \
        if (i + N <= inputs) {                                                                                         \
            taps_##NAME(of + i, g + first, to + i * outputs + first, number, rows, columns, k, inputs, outputs, N, W); \
            i += N;                                                                                                    \
        } else {                                                                                                       \
            taps_##NAME(of + i, g + first, to + i * outputs + first, number, rows, columns, k, inputs, outputs, 1, W); \
            i += 1;                                                                                                    \
        }
            BY_CHUNKS(outputs, RUN)
#undef RUN
        }
    }
    for (int64_t m = begin; dbias && m < end; m++) {
        const float *restrict g = dy + m * units * out;
        float *restrict sum = dbias + m * outputs;
        for (int64_t o = 0; o < outputs; o++) sum[o] = 0.0f;
        BY_WIDTH(outputs, for (int64_t q = 0; q < units * places; q++) for (int64_t o = 0; o < W; o++) sum[o] +=
                          g[q * W + o])
    }
}

#define DEPTHWISE(NAME, LANES)                                                                                         \
    INLINE void depthwise_##NAME(const float *restrict x, const float *restrict w, float *restrict y, int64_t units,   \
                                 int64_t rows, int64_t columns, int64_t k, int64_t channels, int64_t turned,           \
                                 const int64_t W) {                                                                    \
        const int64_t half = k / 2, vectors = VECTORS(LANES, W);                                                       \
        for (int64_t u = 0; u < units; u++)                                                                            \
            for (int64_t r = 0; r < rows; r++)                                                                         \
                for (int64_t c = 0; c < columns; c++) {                                                                \
                    LANES sum[vectors];                                                                                \
                    UNROLL for (int64_t j = 0; j < vectors; j++) sum[j] = (LANES){0};                                  \
                    for (int64_t a = r < half ? half - r : 0; a < k && r + a - half < rows; a++)                       \
                        for (int64_t b = c < half ? half - c : 0; b < k && c + b - half < columns; b++) {              \
                            const int64_t from = (u * rows + r + a - half) * columns + c + b - half;                   \
                            const int64_t tap = turned ? k * k - 1 - (a * k + b) : a * k + b;                          \
                            UNROLL for (int64_t j = 0; j < vectors; j++)                                               \
                                sum[j] += AT(LANES, x, from * channels)[j] * AT(LANES, w, tap * channels)[j];          \
                        }                                                                                              \
                    UNROLL for (int64_t j = 0; j < vectors; j++)                                                       \
                        TO(LANES, y, ((u * rows + r) * columns + c) * channels)[j] = sum[j];                           \
                }                                                                                                      \
    }                                                                                                                  \
    INLINE void depthwise_taps_##NAME(const float *restrict x, const float *restrict dy, float *restrict dw,           \
                                      int64_t units, int64_t rows, int64_t columns, int64_t k, int64_t channels,       \
                                      const int64_t W) {                                                               \
        const int64_t half = k / 2, vectors = VECTORS(LANES, W);                                                       \
        for (int64_t a = 0; a < k; a++)                                                                                \
            for (int64_t b = 0; b < k; b++) {                                                                          \
                const int64_t top = a < half ? half - a : 0, bottom = a > half ? rows - (a - half) : rows;             \
                const int64_t left = b < half ? half - b : 0, right = b > half ? columns - (b - half) : columns;       \
                LANES sum[vectors];                                                                                    \
                UNROLL for (int64_t j = 0; j < vectors; j++) sum[j] = (LANES){0};                                      \
                for (int64_t u = 0; u < units; u++)                                                                    \
                    for (int64_t r = top; r < bottom; r++)                                                             \
                        for (int64_t c = left; c < right; c++) {                                                       \
                            const int64_t at = (u * rows + r) * columns + c;                                           \
                            const int64_t from = (u * rows + r + a - half) * columns + c + b - half;                   \
                            UNROLL for (int64_t j = 0; j < vectors; j++)                                               \
                                sum[j] += AT(LANES, x, from * channels)[j] * AT(LANES, dy, at * channels)[j];          \
                        }                                                                                              \
                UNROLL for (int64_t j = 0; j < vectors; j++) TO(LANES, dw, (a * k + b) * channels)[j] = sum[j];        \
            }                                                                                                          \
    }
DEPTHWISE(one, lanes1)
DEPTHWISE(four, lanes4)
DEPTHWISE(eight, lanes8)

/* One kernel per channel: weight [members, k, k, channels]. turned: by the kernel turned around, as a gradient goes
   back. */
void depthwise(const float *x, const float *weight, float *y, int64_t units, int64_t rows, int64_t columns, int64_t k,
               int64_t channels, int64_t turned, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
        const int64_t of = m * units * rows * columns * channels, w = m * k * k * channels;
#define RUN(NAME, W, N, first)                                                                                         \
    depthwise_##NAME(x + of + first, weight + w + first, y + of + first, units, rows, columns, k, channels, turned, W);
        BY_CHUNKS(channels, RUN)
#undef RUN
    }
}

void depthwise_backward_weight(const float *x, const float *dy, float *dw, int64_t units, int64_t rows, int64_t columns,
                               int64_t k, int64_t channels, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
        const int64_t of = m * units * rows * columns * channels, w = m * k * k * channels;
#define RUN(NAME, W, N, first)                                                                                         \
    depthwise_taps_##NAME(x + of + first, dy + of + first, dw + w + first, units, rows, columns, k, channels, W);
        BY_CHUNKS(channels, RUN)
#undef RUN
    }
}

/* ------------------------------------------------------------------ group norm, then ReLU if asked */

/* RUN(lanes, first channel) until all W channels are computed, the last ones twice where W is no multiple of 4. */
#define BY_VECTORS(W, RUN)                                                                                             \
    {                                                                                                                  \
        int64_t first = 0;                                                                                             \
        UNROLL for (; first + 8 <= (W); first += 8) RUN(eight, first);                                                 \
        if ((W) < 4)                                                                                                   \
            for (; first < (W); first++) RUN(one, first);                                                              \
        else                                                                                                           \
            for (; first < (W); first += 4) RUN(four, (first + 4 <= (W) ? first : (W)-4));                             \
    }

/* For the channels of one vector: norm_sums adds up x over the places or, given a mean, its squared distance from it;
   norm_back gives dx or, without, the sums of what comes back, and of that times the normalised x. */
#define GROUP_NORM(NAME, LANES, BITS)                                                                                  \
    INLINE void norm_sums_##NAME(const float *restrict x, const float *restrict mean, float *restrict sum,             \
                                 int64_t places, int64_t channels) {                                                   \
        LANES total = {0};                                                                                             \
        for (int64_t p = 0; p < places; p++) {                                                                         \
            LANES far = AT(LANES, x, p * channels)[0];                                                                 \
            if (mean) far -= AT(LANES, mean, 0)[0], far *= far;                                                        \
            total += far;                                                                                              \
        }                                                                                                              \
        TO(LANES, sum, 0)[0] = total;                                                                                  \
    }                                                                                                                  \
    INLINE void norm_apply_##NAME(const float *restrict x, float *restrict y, const float *restrict mean,              \
                                  const float *restrict rstd, const float *restrict w, const float *restrict b,        \
                                  int64_t places, int64_t channels, int64_t relu) {                                    \
        const LANES from = AT(LANES, mean, 0)[0], by = AT(LANES, rstd, 0)[0];                                          \
        const LANES weight = AT(LANES, w, 0)[0], bias = AT(LANES, b, 0)[0];                                            \
        for (int64_t p = 0; p < places; p++) {                                                                         \
            const LANES z = (AT(LANES, x, p * channels)[0] - from) * by * weight + bias;                               \
            TO(LANES, y, p * channels)[0] = relu ? RECTIFIED(LANES, BITS, z) : z;                                      \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void norm_back_##NAME(const float *restrict dy, const float *restrict x, float *restrict dx,                \
                                 const float *restrict mean, const float *restrict rstd, const float *restrict w,      \
                                 const float *restrict b, float *restrict level, float *restrict slope,                \
                                 int64_t places, int64_t channels, int64_t relu) {                                     \
        const LANES from = AT(LANES, mean, 0)[0], by = AT(LANES, rstd, 0)[0];                                          \
        const LANES weight = AT(LANES, w, 0)[0], bias = AT(LANES, b, 0)[0];                                            \
        LANES total = {0}, along = {0};                                                                                \
        for (int64_t p = 0; p < places; p++) {                                                                         \
            const LANES hat = (AT(LANES, x, p * channels)[0] - from) * by, z = hat * weight + bias;                    \
            const LANES given = AT(LANES, dy, p * channels)[0], g = relu ? PASSED(LANES, BITS, given, z) : given;      \
            if (dx)                                                                                                    \
                TO(LANES, dx, p * channels)[0] =                                                                       \
                    (g * weight - AT(LANES, level, 0)[0] - hat * AT(LANES, slope, 0)[0]) * by;                         \
            total += g;                                                                                                \
            along += g * hat;                                                                                          \
        }                                                                                                              \
        if (!dx) TO(LANES, level, 0)[0] = total, TO(LANES, slope, 0)[0] = along;                                       \
    }
GROUP_NORM(one, lanes1, bits1)
GROUP_NORM(four, lanes4, bits4)
GROUP_NORM(eight, lanes8, bits8)

/* Mean of each group, beside each of its channels; 0 beside those that only pad, from `width` on. */
INLINE void spread_groups(const float *restrict of_channel, float *restrict spread, int64_t places, const int64_t W,
                          const int64_t width, const int64_t group) {
    const float share = 1.0f / (places * group);
    UNROLL for (int64_t g = 0; g < width; g += group) {
        float total = 0.0f;
        for (int64_t c = g; c < g + group; c++) total += of_channel[c];
        total *= share;
        for (int64_t c = g; c < g + group; c++) spread[c] = total;
    }
    for (int64_t c = width; c < W; c++) spread[c] = 0.0f;
}

INLINE void norm_forward(const float *restrict x, float *restrict y, const float *restrict w, const float *restrict b,
                         float *restrict moments, int64_t units, int64_t places, int64_t channels, int64_t relu,
                         float eps, const int64_t W, const int64_t width, const int64_t group) {
    float sum[W];
    for (int64_t u = 0; u < units; u++) {
        const float *restrict v = x + u * places * channels;
        float *restrict out = y + u * places * channels;
        float *restrict mean = moments + u * 2 * channels, *restrict rstd = mean + channels;
#define RUN(NAME, at) norm_sums_##NAME(v + at, 0, sum + at, places, channels)
        BY_VECTORS(W, RUN)
#undef RUN
        spread_groups(sum, mean, places, W, width, group);
#define RUN(NAME, at) norm_sums_##NAME(v + at, mean + at, sum + at, places, channels)
        BY_VECTORS(W, RUN)
#undef RUN
        spread_groups(sum, rstd, places, W, width, group);
        UNROLL for (int64_t c = 0; c < width; c++) rstd[c] = 1.0f / sqrtf(rstd[c] + eps);
#define RUN(NAME, at)                                                                                                  \
    norm_apply_##NAME(v + at, out + at, mean + at, rstd + at, w + at, b + at, places, channels, relu)
        BY_VECTORS(W, RUN)
#undef RUN
    }
}

INLINE void norm_backward(const float *restrict dy, const float *restrict x, float *restrict dx,
                          const float *restrict w, const float *restrict b, const float *restrict moments,
                          float *restrict dw, float *restrict db, int64_t units, int64_t places, int64_t channels,
                          int64_t relu, const int64_t W, const int64_t width, const int64_t group) {
    float along[W], total[W], slope[W], level[W];
    for (int64_t c = 0; c < W; c++) dw[c] = db[c] = 0.0f;
    for (int64_t u = 0; u < units; u++) {
        const float *restrict v = x + u * places * channels, *restrict d = dy + u * places * channels;
        const float *restrict mean = moments + u * 2 * channels, *restrict rstd = mean + channels;
        float *restrict out = dx + u * places * channels;
#define RUN(NAME, at)                                                                                                  \
    norm_back_##NAME(d + at, v + at, 0, mean + at, rstd + at, w + at, b + at, total + at, along + at, places,          \
                     channels, relu)
        BY_VECTORS(W, RUN)
#undef RUN
        for (int64_t c = 0; c < width; c++) {
            dw[c] += along[c];
            db[c] += total[c];
            along[c] *= w[c];
            total[c] *= w[c];
        }
        spread_groups(along, slope, places, W, width, group);
        spread_groups(total, level, places, W, width, group);
#define RUN(NAME, at)                                                                                                  \
    norm_back_##NAME(d + at, v + at, out + at, mean + at, rstd + at, w + at, b + at, level + at, slope + at, places,   \
                     channels, relu)
        BY_VECTORS(W, RUN)
#undef RUN
    }
}

/* weight, bias [members, channels]; moments [members, units, 2, channels]: mean and 1/deviation, for each channel those of
   its group, 0 where it only pads. present [members]: how many channels exist in a member, the first ones, or null where
   all do; x, weight and bias must be 0 in the others. sizes [channels + 1]: channels in a group of a member with so many
   (see envs/batched/groups.py). */
void group_norm_forward(const float *x, float *y, const float *weight, const float *bias, const int64_t *present,
                        float *moments, const int64_t *sizes, int64_t units, int64_t places, int64_t channels,
                        int64_t relu, float eps, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
        const int64_t of = m * units * places * channels, at = m * channels;
        const int64_t width = present ? present[m] : channels, group = sizes[width];
        float *kept = moments + m * units * 2 * channels;
#define RUN(NAME, W, N, first)                                                                                         \
    norm_forward(x + of + first, y + of + first, weight + at + first, bias + at + first, kept + first, units, places,  \
                 channels, relu, eps, W, W, 4);
        if (width == channels && group == 4) /* what most widths have gets code of its own */
            BY_CHUNKS(channels, RUN)
        else
            norm_forward(x + of, y + of, weight + at, bias + at, kept, units, places, channels, relu, eps, channels,
                         width, group);
#undef RUN
    }
}

void group_norm_backward(const float *dy, const float *x, float *dx, const float *weight, const float *bias,
                         const int64_t *present, const float *moments, float *dweight, float *dbias,
                         const int64_t *sizes, int64_t units, int64_t places, int64_t channels, int64_t relu,
                         int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
        const int64_t of = m * units * places * channels, at = m * channels;
        const int64_t width = present ? present[m] : channels, group = sizes[width];
        const float *kept = moments + m * units * 2 * channels;
#define RUN(NAME, W, N, first)                                                                                         \
    norm_backward(dy + of + first, x + of + first, dx + of + first, weight + at + first, bias + at + first,            \
                  kept + first, dweight + at + first, dbias + at + first, units, places, channels, relu, W, W, 4);
        if (width == channels && group == 4)
            BY_CHUNKS(channels, RUN)
        else
            norm_backward(dy + of, x + of, dx + of, weight + at, bias + at, kept, dweight + at, dbias + at, units,
                          places, channels, relu, channels, width, group);
#undef RUN
    }
}

/* ------------------------------------------------------------------ batch norm, ReLU, and a 2×2 mean if asked */

/* Sums per channel of x - from, or of its square, over a member's pixels, side by side in strips of whole pixels. */
INLINE void channel_sums(const float *restrict x, const float *restrict from, double *restrict total, int64_t cells,
                         int64_t squared, const int64_t W) {
    const int64_t pixels = W < STRIP ? STRIP / W : 1, strip = pixels * W;
    float origin[strip], part[strip];
    for (int64_t j = 0; j < strip; j++) origin[j] = from ? from[j % W] : 0.0f;
    for (int64_t c = 0; c < W; c++) total[c] = 0.0;
    for (int64_t start = 0; start < cells;) {
        const int64_t rows = (cells - start) / pixels < 64 ? (cells - start) / pixels : 64;
        for (int64_t j = 0; j < strip; j++) part[j] = 0.0f;
        for (int64_t r = 0; r < rows; r++) {
            const float *restrict v = x + start * W + r * strip;
            for (int64_t j = 0; j < strip; j++) part[j] += squared ? (v[j] - origin[j]) * (v[j] - origin[j]) : v[j];
        }
        for (int64_t j = 0; j < strip; j++) total[j % W] += part[j];
        start += rows * pixels;
        for (; rows == 0 && start < cells; start++)
            for (int64_t c = 0; c < W; c++) {
                const float v = x[start * W + c] - (from ? from[c] : 0.0f);
                total[c] += squared ? v * v : v;
            }
    }
}

#define BATCH_NORM(NAME, LANES, BITS)                                                                                  \
    INLINE void batch_forward_##NAME(const float *restrict x, float *restrict y, const float *restrict scale,          \
                                     const float *restrict shift, int64_t units, int64_t rows, int64_t columns,        \
                                     int64_t channels, int64_t relu, const int64_t taps, const int64_t W) {            \
        const int64_t places = rows * columns, outputs = taps > 1 ? (rows / 2) * (columns / 2) : places;               \
        const int64_t vectors = VECTORS(LANES, W);                                                                     \
        const float part = 1.0f / taps;                                                                                \
        for (int64_t u = 0; u < units; u++)                                                                            \
            for (int64_t q = 0; q < outputs; q++) {                                                                    \
                int64_t at[4];                                                                                         \
                window(q, columns, taps > 1, at);                                                                      \
                UNROLL for (int64_t j = 0; j < vectors; j++) {                                                         \
                    LANES sum = {0};                                                                                   \
                    UNROLL for (int64_t k = 0; k < taps; k++) {                                                        \
                        const LANES z = AT(LANES, x, (u * places + at[k]) * channels)[j] * AT(LANES, scale, 0)[j] +    \
                                        AT(LANES, shift, 0)[j];                                                        \
                        sum += relu ? RECTIFIED(LANES, BITS, z) : z;                                                   \
                    }                                                                                                  \
                    TO(LANES, y, (u * outputs + q) * channels)[j] = sum * part;                                        \
                }                                                                                                      \
            }                                                                                                          \
    }                                                                                                                  \
    INLINE void batch_sums_##NAME(const float *restrict dy, const float *restrict x, const float *restrict scale,      \
                                  const float *restrict shift, const float *restrict mean, float *restrict along,      \
                                  float *restrict total, int64_t units, int64_t rows, int64_t columns,                 \
                                  int64_t channels, int64_t relu, const int64_t taps, const int64_t W) {               \
        const int64_t places = rows * columns, outputs = taps > 1 ? (rows / 2) * (columns / 2) : places;               \
        const int64_t vectors = VECTORS(LANES, W);                                                                     \
        for (int64_t c = 0; c < W; c++) along[c] = total[c] = 0.0f;                                                    \
        for (int64_t u = 0; u < units; u++)                                                                            \
            UNROLL for (int64_t j = 0; j < vectors; j++) {                                                             \
                const LANES by = AT(LANES, scale, 0)[j], plus = AT(LANES, shift, 0)[j], from = AT(LANES, mean, 0)[j];  \
                LANES along_of[taps], total_of[taps];                                                                  \
                UNROLL for (int64_t k = 0; k < taps; k++) along_of[k] = total_of[k] = (LANES){0};                      \
                for (int64_t q = 0; q < outputs; q++) {                                                                \
                    int64_t at[4];                                                                                     \
                    window(q, columns, taps > 1, at);                                                                  \
                    const LANES d = AT(LANES, dy, (u * outputs + q) * channels)[j];                                    \
                    UNROLL for (int64_t k = 0; k < taps; k++) {                                                        \
                        const LANES v = AT(LANES, x, (u * places + at[k]) * channels)[j], z = v * by + plus;           \
                        const LANES g = relu ? PASSED(LANES, BITS, d, z) : d;                                          \
                        total_of[k] += g;                                                                              \
                        along_of[k] += g * (v - from);                                                                 \
                    }                                                                                                  \
                }                                                                                                      \
                UNROLL for (int64_t k = 0; k < taps; k++) {                                                            \
                    TO(LANES, along, 0)[j] += along_of[k];                                                             \
                    TO(LANES, total, 0)[j] += total_of[k];                                                             \
                }                                                                                                      \
            }                                                                                                          \
    }                                                                                                                  \
    INLINE void batch_back_##NAME(const float *restrict dy, const float *restrict x, float *restrict dx,               \
                                  const float *restrict scale, const float *restrict shift,                            \
                                  const float *restrict mean, const float *restrict slope,                             \
                                  const float *restrict level, int64_t units, int64_t rows, int64_t columns,           \
                                  int64_t channels, int64_t relu, const int64_t taps, const int64_t W) {               \
        const int64_t places = rows * columns, outputs = taps > 1 ? (rows / 2) * (columns / 2) : places;               \
        const int64_t vectors = VECTORS(LANES, W);                                                                     \
        const float part = 1.0f / taps;                                                                                \
        for (int64_t u = 0; u < units; u++)                                                                            \
            for (int64_t q = 0; q < outputs; q++) {                                                                    \
                int64_t at[4];                                                                                         \
                window(q, columns, taps > 1, at);                                                                      \
                UNROLL for (int64_t j = 0; j < vectors; j++) {                                                         \
                    const LANES by = AT(LANES, scale, 0)[j];                                                           \
                    const LANES d = AT(LANES, dy, (u * outputs + q) * channels)[j] * part;                             \
                    UNROLL for (int64_t k = 0; k < taps; k++) {                                                        \
                        const LANES v = AT(LANES, x, (u * places + at[k]) * channels)[j];                              \
                        const LANES z = v * by + AT(LANES, shift, 0)[j];                                               \
                        const LANES g = relu ? PASSED(LANES, BITS, d, z) : d;                                          \
                        TO(LANES, dx, (u * places + at[k]) * channels)[j] =                                            \
                            g * by - AT(LANES, level, 0)[j] -                                                          \
                            (v - AT(LANES, mean, 0)[j]) * AT(LANES, slope, 0)[j];                                      \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
    }
BATCH_NORM(one, lanes1, bits1)
BATCH_NORM(four, lanes4, bits4)
BATCH_NORM(eight, lanes8, bits8)

/* x [members, units, rows·columns, channels]; y has a quarter of the places if pool. running_mean, running_var: updated;
   moments [2, members, channels]: this batch's mean and 1/deviation. */
void batch_norm_forward(const float *x, float *y, const float *weight, const float *bias, float *running_mean,
                        float *running_var, float *moments, int64_t members, int64_t units, int64_t rows,
                        int64_t columns, int64_t channels, int64_t relu, int64_t pool, float momentum, float eps,
                        int64_t begin, int64_t end) {
    const int64_t cells = units * rows * columns, in = cells * channels;
    const int64_t out = pool ? units * (rows / 2) * (columns / 2) * channels : in;
    const float unbiased = cells > 1 ? (float)cells / (cells - 1) : 1.0f;
    for (int64_t m = begin; m < end; m++) {
        const int64_t at = m * channels;
        float *mean = moments + at, *rstd = moments + members * channels + at, scale[channels], shift[channels];
        double total[channels];
        BY_WIDTH(channels, channel_sums(x + m * in, 0, total, cells, 0, W))
        for (int64_t c = 0; c < channels; c++) mean[c] = (float)(total[c] / cells);
        BY_WIDTH(channels, channel_sums(x + m * in, mean, total, cells, 1, W))
        for (int64_t c = 0; c < channels; c++) {
            const float var = (float)(total[c] / cells);
            running_mean[at + c] += momentum * (mean[c] - running_mean[at + c]);
            running_var[at + c] += momentum * (var * unbiased - running_var[at + c]);
            rstd[c] = 1.0f / sqrtf(var + eps);
            scale[c] = rstd[c] * weight[at + c];
            shift[c] = bias[at + c] - mean[c] * scale[c];
        }
#define RUN(NAME, W, N, first)                                                                                         \
    if (pool)                                                                                                          \
        batch_forward_##NAME(x + m * in + first, y + m * out + first, scale + first, shift + first, units, rows,       \
                             columns, channels, relu, 4, W);                                                           \
    else                                                                                                               \
        batch_forward_##NAME(x + m * in + first, y + m * out + first, scale + first, shift + first, units, rows,       \
                             columns, channels, relu, 1, W);
        BY_CHUNKS(channels, RUN)
#undef RUN
    }
}

void batch_norm_backward(const float *dy, const float *x, float *dx, const float *weight, const float *bias,
                         const float *moments, float *dweight, float *dbias, int64_t members, int64_t units,
                         int64_t rows, int64_t columns, int64_t channels, int64_t relu, int64_t pool, int64_t begin,
                         int64_t end) {
    const int64_t places = rows * columns, in = units * places * channels;
    const int64_t out = pool ? units * (rows / 2) * (columns / 2) * channels : in;
    const float part = pool ? 0.25f : 1.0f, share = 1.0f / (units * places);
    for (int64_t m = begin; m < end; m++) {
        const int64_t at = m * channels;
        const float *mean = moments + at, *rstd = moments + members * channels + at, *of = x + m * in;
        float scale[channels], shift[channels], along[channels], total[channels], *to = dx + m * in;
        for (int64_t c = 0; c < channels; c++) {
            scale[c] = rstd[c] * weight[at + c];
            shift[c] = bias[at + c] - mean[c] * scale[c];
        }
#define RUN(NAME, W, N, first)                                                                                         \
    if (pool)                                                                                                          \
        batch_sums_##NAME(dy + m * out + first, of + first, scale + first, shift + first, mean + first, along + first, \
                          total + first, units, rows, columns, channels, relu, 4, W);                                  \
    else                                                                                                               \
        batch_sums_##NAME(dy + m * out + first, of + first, scale + first, shift + first, mean + first, along + first, \
                          total + first, units, rows, columns, channels, relu, 1, W);
        BY_CHUNKS(channels, RUN)
#undef RUN
        /* dx = scale·(g − mean of g − x̂·mean of g·x̂) = scale·g − level − (x − mean)·slope */
        for (int64_t c = 0; c < channels; c++) {
            dweight[at + c] = along[c] * rstd[c] * part;
            dbias[at + c] = total[c] * part;
            along[c] = scale[c] * rstd[c] * dweight[at + c] * share;
            total[c] = scale[c] * dbias[at + c] * share;
        }
#define RUN(NAME, W, N, first)                                                                                         \
    if (pool)                                                                                                          \
        batch_back_##NAME(dy + m * out + first, of + first, to + first, scale + first, shift + first, mean + first,    \
                          along + first, total + first, units, rows, columns, channels, relu, 4, W);                   \
    else                                                                                                               \
        batch_back_##NAME(dy + m * out + first, of + first, to + first, scale + first, shift + first, mean + first,    \
                          along + first, total + first, units, rows, columns, channels, relu, 1, W);
        BY_CHUNKS(channels, RUN)
#undef RUN
        /* What the pooling leaves out at an odd edge. */
        for (int64_t p = 0; pool && (rows % 2 || columns % 2) && p < units * places; p++) {
            if (p % places / columns < rows / 2 * 2 && p % columns < columns / 2 * 2) continue;
            for (int64_t c = 0; c < channels; c++)
                to[p * channels + c] = -total[c] - (of[p * channels + c] - mean[c]) * along[c];
        }
    }
}

/* ------------------------------------------------------------------ limit, gate, multiply and blend */

enum { SIZE, SHORTENING, OPENING, STATISTICS };

INLINE float inner(const float *restrict x, const float *restrict y, int64_t length) {
    lanes8 low = {0}, high = {0};
    float total = 0.0f;
    int64_t j = 0;
    for (; j + 16 <= length; j += 16) {
        low += AT(lanes8, x, j)[0] * AT(lanes8, y, j)[0];
        high += AT(lanes8, x, j)[1] * AT(lanes8, y, j)[1];
    }
    for (; j < length; j++) total += x[j] * y[j];
    low += high;
    for (int64_t k = 0; k < 8; k++) total += low[k];
    return total;
}

/* Mean of each channel over the places. */
INLINE void pool(const float *restrict x, float *restrict mean, int64_t places, const int64_t W) {
    for (int64_t c = 0; c < W; c++) mean[c] = 0.0f;
    for (int64_t p = 0; p < places; p++)
        for (int64_t c = 0; c < W; c++) mean[c] += x[p * W + c];
    for (int64_t c = 0; c < W; c++) mean[c] /= places;
}

INLINE void seed_forward(const float *restrict h, const float *restrict delta, float *restrict y, float alpha,
                         int64_t multiplies, const float *restrict gate, float gate_bias, float *restrict statistics,
                         int64_t units, int64_t places, float eps, const int64_t W) {
    const int64_t length = places * W;
    for (int64_t u = 0; u < units; u++) {
        const float *restrict a = h + u * length, *restrict d = delta + u * length;
        float *restrict out = y + u * length, *restrict kept = statistics + u * STATISTICS, opening = 1.0f;
        const float size = sqrtf(inner(d, d, length) + eps * eps), shortening = sqrtf(inner(a, a, length)) / size;
        if (gate) {
            float mean[W], logit = gate_bias;
            pool(a, mean, places, W);
            for (int64_t c = 0; c < W; c++) logit += gate[c] * mean[c];
            opening = 1.0f / (1.0f + expf(-logit));
        }
        kept[SIZE] = size, kept[SHORTENING] = shortening, kept[OPENING] = opening;
        if (alpha == 0.0f) continue;
        const float factor = (shortening > 1.0f ? 1.0f : shortening) * opening;
        for (int64_t j = 0; j < length; j++) {
            const float effect = d[j] * factor;
            out[j] = a[j] + alpha * (multiplies ? a[j] * hyperbolic_tangent(effect) : effect);
        }
    }
}

/* Seeds of a slot. y, which holds h before, is replaced where a seed can be seen.

   members [count]: place of each seed among the hosts; multiplies: blended by MULTIPLY; gated: by GATE, with gate_weight
   [count, channels] and gate_bias [count]; statistics [count, units, 3]: what the backward needs again. */
void graft_forward(const float *h, const float *delta, float *y, const int64_t *members, const float *alpha,
                   const uint8_t *multiplies, const uint8_t *gated, const float *gate_weight, const float *gate_bias,
                   float *statistics, int64_t units, int64_t places, int64_t channels, float eps, int64_t begin,
                   int64_t end) {
    const int64_t size = units * places * channels;
    BY_WIDTH(channels, for (int64_t i = begin; i < end; i++) {
        const float *gate = gated[i] ? gate_weight + i * W : 0, *host = h + members[i] * size;
        const float bias = gated[i] ? gate_bias[i] : 0.0f;
        float *to = y + members[i] * size, *kept = statistics + i * units * STATISTICS;
        if (multiplies[i])
            seed_forward(host, delta + i * size, to, alpha[i], 1, gate, bias, kept, units, places, eps, W);
        else
            seed_forward(host, delta + i * size, to, alpha[i], 0, gate, bias, kept, units, places, eps, W);
    })
}

INLINE void seed_backward(const float *restrict dy, const float *restrict h, const float *restrict delta,
                          float *restrict dh, float *restrict ddelta, float strength, int64_t multiplies,
                          int64_t incubating, int64_t attached, const float *restrict gate,
                          const float *restrict statistics, float *restrict dgate, float *restrict dgate_bias,
                          int64_t units, int64_t places, const int64_t W) {
    const int64_t length = places * W;
    for (int64_t u = 0; u < units; u++) {
        const float *restrict g = dy + u * length, *restrict a = h + u * length;
        const float *restrict d = delta + u * length, *restrict kept = statistics + u * STATISTICS;
        float *restrict effect = ddelta + u * length, *restrict carried = dh + u * length;
        const float size = kept[SIZE], shortening = kept[SHORTENING], opening = kept[OPENING];
        const float limit = shortening > 1.0f ? 1.0f : shortening, factor = limit * opening;
        for (int64_t j = 0; j < length; j++) {
            if (multiplies) {
                const float t = hyperbolic_tangent(d[j] * factor), product = g[j] * strength;
                if (!incubating) carried[j] += product * t;
                effect[j] = product * a[j] * (1.0f - t * t);
            } else
                effect[j] = g[j] * strength;
        }
        const float along = inner(effect, d, length);
        /* The limit's own gradient, where it binds: a longer delta is shortened more. */
        const float pull = shortening <= 1.0f ? along * factor / (size * size) : 0.0f;
        for (int64_t j = 0; j < length; j++) effect[j] = effect[j] * factor - d[j] * pull;
        if (!gate) continue;
        float mean[W];
        pool(a, mean, places, W);
        const float to_logit = along * limit * opening * (1.0f - opening);
        *dgate_bias += to_logit;
        for (int64_t c = 0; c < W; c++) dgate[c] += to_logit * mean[c];
        for (int64_t p = 0; attached && p < places; p++)
            for (int64_t c = 0; c < W; c++) carried[p * W + c] += to_logit * gate[c] / places;
    }
}

/* Before, dh holds dy, and the gates' gradients 0. incubating: TRAINING, whose host must not notice; attached: whose gate's
   input is the host's. */
void graft_backward(const float *dy, const float *h, const float *delta, float *dh, float *ddelta,
                    const int64_t *members, const float *strength, const uint8_t *multiplies,
                    const uint8_t *incubating, const uint8_t *attached, const uint8_t *gated, const float *gate_weight,
                    const float *statistics, float *dgate_weight, float *dgate_bias, int64_t units, int64_t places,
                    int64_t channels, int64_t begin, int64_t end) {
    const int64_t size = units * places * channels;
    BY_WIDTH(channels, for (int64_t i = begin; i < end; i++) {
        const int64_t of = members[i] * size;
        const float *gate = gated[i] ? gate_weight + i * W : 0, *kept = statistics + i * units * STATISTICS;
        float *to_weight = gated[i] ? dgate_weight + i * W : 0, *to_bias = gated[i] ? dgate_bias + i : 0;
        if (multiplies[i])
            seed_backward(dy + of, h + of, delta + i * size, dh + of, ddelta + i * size, strength[i], 1, incubating[i],
                          attached[i], gate, kept, to_weight, to_bias, units, places, W);
        else
            seed_backward(dy + of, h + of, delta + i * size, dh + of, ddelta + i * size, strength[i], 0, incubating[i],
                          attached[i], gate, kept, to_weight, to_bias, units, places, W);
    })
}

/* ------------------------------------------------------------------ few rows times weights */

/* What takes the time is to fetch the weights from memory, each once: they are read in the order in which they lie. */
enum { COLUMNS = 16, PANEL = 64 * COLUMNS, ROWS = 16, DEPTH = 8 };

/* Adds the part of `depth` inputs to the sums of some of a panel's columns, [columns, rows, COLUMNS]. */
INLINE void deepen(const float *restrict x, const float *restrict w, float *restrict sums, int64_t rows, int64_t inputs,
                   int64_t outputs, const int64_t *restrict columns, int64_t count, const int64_t depth) {
    for (int64_t k = 0; k < count; k++) {
        const int64_t c = columns[k];
        lanes16 weights[depth];
        UNROLL for (int64_t i = 0; i < depth; i++) weights[i] = *AT(lanes16, w, i * outputs + c);
        UNROLL for (int64_t i = 0; i < depth; i++) __builtin_prefetch(w + (depth + i) * outputs + c); /* the next part */
        for (int64_t r = 0; r < rows; r++, sums += COLUMNS) {
            lanes16 sum = *AT(lanes16, sums, 0);
            UNROLL for (int64_t i = 0; i < depth; i++) sum += x[r * inputs + i] * weights[i];
            *TO(lanes16, sums, 0) = sum;
        }
    }
}

/* y [rows, outputs] = x [rows, inputs] · weight [inputs, outputs]; by panels of the outputs. Of roles that are not wanted,
   each `width` outputs wide, only what lies in one vector with another's is computed; the rest is 0. */
void product(const float *x, const float *weight, const uint8_t *wanted, float *y, int64_t all_rows, int64_t inputs,
             int64_t outputs, int64_t width, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
        const int64_t left = panel * PANEL, right = left + PANEL < outputs ? left + PANEL : outputs;
        int64_t columns[PANEL / COLUMNS], count = 0;
        for (int64_t column = left; column < right && outputs >= COLUMNS; column += COLUMNS) {
            const int64_t c = column + COLUMNS <= outputs ? column : outputs - COLUMNS; /* the last ones twice */
            for (int64_t role = c / width; role <= (c + COLUMNS - 1) / width; role++)
                if (wanted[role]) {
                    columns[count++] = c;
                    break;
                }
        }
        for (int64_t top = 0; top < all_rows; top += ROWS) {
            const int64_t rows = top + ROWS <= all_rows ? ROWS : all_rows - top;
            const float *of = x + top * inputs;
            float sums[ROWS * PANEL], *sum = sums, *to = y + top * outputs;
            for (int64_t r = 0; r < rows; r++) memset(to + r * outputs + left, 0, (right - left) * sizeof(float));
            if (outputs < COLUMNS) {
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < inputs; i++)
                        for (int64_t o = 0; o < outputs; o++)
                            to[r * outputs + o] += of[r * inputs + i] * weight[i * outputs + o];
                continue;
            }
            memset(sums, 0, rows * count * COLUMNS * sizeof(float));
            int64_t i = 0;
            for (; i + DEPTH <= inputs; i += DEPTH)
                deepen(of + i, weight + i * outputs, sums, rows, inputs, outputs, columns, count, DEPTH);
            for (; i < inputs; i++) deepen(of + i, weight + i * outputs, sums, rows, inputs, outputs, columns, count, 1);
            for (int64_t k = 0; k < count; k++)
                for (int64_t r = 0; r < rows; r++, sum += COLUMNS)
                    *TO(lanes16, to, r * outputs + columns[k]) = *AT(lanes16, sum, 0);
        }
    }
}

/* y [inboxes, width]: the mean over heads of each inbox's messages [rows, heads, width], weighed by a softmax over its
   edges: those from first[inbox] on. An edge's score is the leaky ReLU of what its message says, weighed by a vector per
   relation (source, whose numbers of one head lie strides[relation] apart), of target [inboxes, heads], and of its
   attributes, weighed by along [attributes, relations, heads]. scores [edges, heads] is room for them. */
void attention(const float *messages, const float *const *source, const int64_t *strides, const float *target,
               const float *along, const int64_t *message, const int64_t *first, const int64_t *relation,
               const int64_t *edge, const float *attributes, float *scores, float *y, int64_t inboxes, int64_t edges,
               int64_t relations, int64_t attributes_of, int64_t heads, int64_t width, float slope, int64_t begin,
               int64_t end) {
    for (int64_t q = begin; q < end; q++) {
        const int64_t from = first[q], upto = q + 1 < inboxes ? first[q + 1] : edges;
        float *restrict to = y + q * width;
        memset(to, 0, width * sizeof(float));
        for (int64_t e = from; e < upto; e++)
            for (int64_t h = 0; h < heads; h++) {
                const float *restrict said = messages + (message[e] * heads + h) * width;
                const float *restrict weights = source[relation[e]] + h, *restrict numbers = attributes + edge[e] * attributes_of;
                float score = target[q * heads + h];
                for (int64_t c = 0; c < width; c++) score += said[c] * weights[c * strides[relation[e]]];
                for (int64_t a = 0; a < attributes_of; a++)
                    score += numbers[a] * along[(a * relations + relation[e]) * heads + h];
                scores[e * heads + h] = score < 0.0f ? slope * score : score;
            }
        for (int64_t h = 0; h < heads && from < upto; h++) {
            float largest = scores[from * heads + h], total = 0.0f;
            for (int64_t e = from + 1; e < upto; e++)
                if (scores[e * heads + h] > largest) largest = scores[e * heads + h];
            for (int64_t e = from; e < upto; e++) total += scores[e * heads + h] = expf(scores[e * heads + h] - largest);
            for (int64_t e = from; e < upto; e++) {
                const float *restrict said = messages + (message[e] * heads + h) * width;
                const float weight = scores[e * heads + h] / (total * heads);
                for (int64_t c = 0; c < width; c++) to[c] += weight * said[c];
            }
        }
    }
}

/* y [nodes, width]: of each node's rows, shifted by its role's bias, those that count, each normed, scaled and shifted
   by its role, and added up. x [nodes, roles, width], counts [nodes, roles], the others [roles, width]. */
void normed_sums(const float *x, const float *counts, const float *bias, const float *gain, const float *shift,
                 float *y, int64_t roles, int64_t width, float eps, int64_t begin, int64_t end) {
    float row[width], ones[width];
    for (int64_t c = 0; c < width; c++) ones[c] = 1.0f;
    for (int64_t n = begin; n < end; n++) {
        float *restrict to = y + n * width;
        memset(to, 0, width * sizeof(float));
        for (int64_t r = 0; r < roles; r++) {
            if (counts[n * roles + r] == 0.0f) continue;
            const float *restrict of = x + (n * roles + r) * width, *restrict b = bias + r * width;
            const float *restrict g = gain + r * width, *restrict s = shift + r * width;
            for (int64_t c = 0; c < width; c++) row[c] = of[c] + b[c];
            const float mean = inner(row, ones, width) / width;
            for (int64_t c = 0; c < width; c++) row[c] -= mean;
            const float scale = 1.0f / sqrtf(inner(row, row, width) / width + eps);
            for (int64_t c = 0; c < width; c++) to[c] += row[c] * scale * g[c] + s[c];
        }
    }
}

/* ------------------------------------------------------------------ SGD with momentum, each row clipped by itself */

/* The same arithmetic with a mask and without: what is computed for a row must not depend on other rows' masks. */
INLINE float moving(const float *restrict g, const uint8_t *restrict held, int64_t j) {
    return held && held[j] ? 0.0f : g[j];
}

INLINE float squared(const float *restrict g, const uint8_t *restrict held, int64_t length) {
    enum { LANES = 16 };
    float lanes[LANES] = {0}, total = 0.0f;
    int64_t j = 0;
    for (; j + LANES <= length; j += LANES)
        for (int64_t k = 0; k < LANES; k++) lanes[k] = fmaf(moving(g, held, j + k), moving(g, held, j + k), lanes[k]);
    for (; j < length; j++) total = fmaf(moving(g, held, j), moving(g, held, j), total);
    for (int64_t k = 0; k < LANES; k++) total += lanes[k];
    return total;
}

/* Segments are parameters of one row (a host, a seed), side by side in the flat tensors: segment s has lengths[s]
   scalars, belongs to row owners[s], and adds its squared norm to squares[cells[s]]. held, if given, marks scalars that
   stay where they are and count for nothing but squares; without them moving_squares[cells[s]] adds up the same, and
   totals [rows] are the step's squared norms of the rows. A row's gradient that is longer than clip is shortened to it.
   gradients: one address per leaf of leaf_sizes scalars, together as long as the flat tensors. */
void sgd_step(float *flat, float *momentum, const float *const *gradients, const int64_t *leaf_sizes, int64_t leaves,
              const int64_t *lengths, const int64_t *owners, const int64_t *cells, const uint8_t *held, float *squares,
              float *moving_squares, float *totals, const float *rates, int64_t rows, int64_t segments, float clip,
              float decay) {
    memset(totals, 0, rows * sizeof(float));
    for (int pass = 0; pass < 2; pass++) {
        int64_t at = 0, leaf = 0, within = 0;
        for (int64_t s = 0; s < segments; s++) {
            while (leaf < leaves && within == leaf_sizes[leaf]) leaf++, within = 0;
            const int64_t length = lengths[s], row = owners[s];
            const float *restrict g = gradients[leaf] + within;
            const uint8_t *restrict mask = held ? held + at : 0;
            if (pass == 0) {
                const float whole = squared(g, 0, length), part = mask ? squared(g, mask, length) : whole;
                squares[cells[s]] += whole, moving_squares[cells[s]] += part, totals[row] += part;
            } else {
                const float norm = sqrtf(totals[row]), factor = clip / (norm < clip ? clip : norm), by = rates[row];
                float *restrict x = flat + at, *restrict v = momentum + at;
                for (int64_t j = 0; j < length; j++) {
                    v[j] = fmaf(v[j], decay, moving(g, mask, j) * factor);
                    x[j] = fmaf(-by, v[j], x[j]);
                }
            }
            at += length, within += length;
        }
    }
}
