/* Sixteen floats at a time. A length that is no multiple of sixteen ends in a masked vector. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define INLINED __attribute__((always_inline)) static inline /* so that a constant argument is one inside, too */

static inline __mmask16 lanes_left(int count) { return count >= LANES ? 0xFFFF : (__mmask16)((1u << count) - 1); }

static inline __m512 load(const float *from, int count) { return _mm512_maskz_loadu_ps(lanes_left(count), from); }

static inline void store(float *to, __m512 x, int count) { _mm512_mask_storeu_ps(to, lanes_left(count), x); }

static inline __m512 load_half(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

static inline __m256i to_half(__m512 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* e^x for x ≤ 0, within 2 units in the last place: e^x = 2^n · e^r with |r| ≤ ln 2 / 2, Taylor's series for e^r. */
static inline __m512 exponential(__m512 x) {
    const __m512 lowest = _mm512_set1_ps(-87.0f); /* below, e^x is no longer a normal number: take it for 0 */
    const __mmask16 is_zero = _mm512_cmp_ps_mask(x, lowest, _CMP_LT_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts: n·(first) is exact */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(series[i]));
    return _mm512_maskz_mov_ps((__mmask16)~is_zero, _mm512_scalef_ps(y, n));
}

/* x · Φ(x), the exact GELU, with erf by formula 7.1.26 of Abramowitz and Stegun (error below 1.5e-7). */
static inline __m512 gelu(__m512 x) {
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t =
        _mm512_div_ps(_mm512_set1_ps(1), _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), z, _mm512_set1_ps(1)));
    __m512 y = _mm512_set1_ps(1.061405429f);
    const float series[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    for (int i = 0; i < 4; i++) y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(series[i]));
    const __m512 tail =
        _mm512_mul_ps(_mm512_mul_ps(y, t), exponential(_mm512_mul_ps(z, _mm512_sub_ps(_mm512_setzero_ps(), z))));
    /* tail = 1 − erf(|x|/√2); Φ(x) = 1 − tail/2 to the right of zero and tail/2 to the left. */
    const __m512 half = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f));
    const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 phi = _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_set1_ps(1), half), is_negative, half);
    return _mm512_mul_ps(x, phi);
}
