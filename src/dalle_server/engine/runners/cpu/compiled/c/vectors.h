/* Sixteen floats at a time, whatever the processor's registers hold. A length that is no multiple of sixteen ends in a
 * vector of which only the first lanes count. Sums over lanes go through one fixed tree.
 */
#pragma once
#include "target.h"

#define MAGIC 0x1.8p23f /* a float added to it is rounded to a whole number, which is in its last bits */

BEGIN_TARGET

INLINED Floats filled(float x) { return (Floats)x; }

/* All ones in the first `count` lanes. */
INLINED Ints first_lanes(int count) {
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < count;
}

INLINED Floats keep(Ints lanes, Floats x) { return (Floats)(lanes & (Ints)x); }

INLINED Floats load_all(const float *from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINED void store_all(float *to, Floats x) { memcpy(to, &x, sizeof x); }

/* The lanes from `count` on are zeros. */
INLINED Floats load(const float *from, int count) {
    if (count >= LANES) return load_all(from);
    float some[LANES] = {0};
    for (int i = 0; i < count; i++) some[i] = from[i];
    return load_all(some);
}

INLINED void store(float *to, Floats x, int count) {
    if (count >= LANES) {
        store_all(to, x);
        return;
    }
    float some[LANES];
    store_all(some, x);
    for (int i = 0; i < count; i++) to[i] = some[i];
}

INLINED Halves to_halves(Floats x) {
    typedef _Float16 Float16s __attribute__((ext_vector_type(LANES)));
    return (Halves) __builtin_convertvector(x, Float16s);
}

/* To the nearest whole number within ±127, ties to even; what is no number becomes 0. */
INLINED Ints to_int8(Floats x) {
    x = x == x ? x : filled(0);
    x = x > 127.0f ? filled(127) : x < -127.0f ? filled(-127) : x;
    return __builtin_convertvector(__builtin_elementwise_roundeven(x), Ints);
}

INLINED Floats absolute(Floats x) { return (Floats)((Ints)x & 0x7FFFFFFF); }
INLINED Floats larger(Floats x, Floats y) { return x > y ? x : y; }

typedef float Eight __attribute__((ext_vector_type(8)));
typedef float Four __attribute__((ext_vector_type(4)));

INLINED float sum_of(Floats x) {
    const Eight eight = x.lo + x.hi;
    const Four four = eight.lo + eight.hi;
    return (four.x + four.z) + (four.y + four.w);
}

INLINED float largest_of(Floats x) {
    const Eight eight = x.lo > x.hi ? x.lo : x.hi;
    const Four four = eight.lo > eight.hi ? eight.lo : eight.hi;
    const float even = four.x > four.z ? four.x : four.z, odd = four.y > four.w ? four.y : four.w;
    return even > odd ? even : odd;
}

/* e^x for x ≤ 0, within 2 units in the last place: e^x = 2^n · e^r with |r| ≤ ln 2 / 2, Taylor's series for e^r. */
INLINED Floats exponential(Floats x) {
    const Ints is_zero = x < -87.0f; /* e^x is no longer a normal number: take it for 0 */
    const Floats n = __builtin_elementwise_roundeven(x * 1.44269504f);
    Floats r = fused(n, filled(-0.693359375f), x); /* ln 2 in two parts: n · (first) is exact */
    r = fused(n, filled(2.12194440e-4f), r);
    Floats y = filled(1.0f / 5040);
    const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = fused(y, r, filled(series[i]));
    const Floats n_or_0 = x >= -87.0f ? n : filled(0); /* not NaN either: y is, already */
    return keep(~is_zero, y * (Floats)((__builtin_convertvector(n_or_0, Ints) + 127) << 23));
}

/* x · Φ(x), the exact GELU, with erf by formula 7.1.26 of Abramowitz and Stegun (error below 1.5e-7). */
INLINED Floats gelu(Floats x) {
    const Floats z = absolute(x) * 0.70710678f, t = 1.0f / fused(filled(0.3275911f), z, filled(1));
    Floats y = filled(1.061405429f);
    const float series[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    for (int i = 0; i < 4; i++) y = fused(y, t, filled(series[i]));
    const Floats half = y * t * exponential(z * -z) * 0.5f;
    /* 2 · half = 1 − erf(|x|/√2); Φ(x) = 1 − half to the right of zero and half to the left. */
    return x * (x < 0 ? half : 1.0f - half);
}

/* x · sigmoid(x) = x / (1 + e^−x), within 3e-7 of the true value: e^−x = 2^n · 2^r with |r| ≤ ½, a polynomial for 2^r.
 */
INLINED Floats swish(Floats x) {
    Floats y = x * -1.44269504f;
    y = y > -126 ? y : -126;
    y = y < 126 ? y : 126;
    const Floats rounded = y + MAGIC, r = y - (rounded - MAGIC);
    Floats power = filled(1.3276471e-3f);
    const float series[] = {9.6755413e-3f, 5.5507133e-2f, 2.4022120e-1f, 6.9314697e-1f, 1.0f};
    for (int i = 0; i < 5; i++) power = fused(power, r, filled(series[i]));
    return x / (1 + power * (Floats)(((Ints)rounded << 23) + 0x3F800000));
}

END_TARGET
