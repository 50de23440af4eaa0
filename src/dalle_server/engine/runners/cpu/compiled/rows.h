/* What happens to one row between two products: norms, the gate, and rounding to int8. */
#pragma once
#include "product.h"
#include "vectors.h"

#define LAYER_NORM_EPS 1e-5f

/* to = (x − mean)/√(variance + ε) · scale + bias over `width` values; scale NULL means 1. `to` may be x. */
static void layer_norm(const float *x, float *to, int width, const float *scale, const float *bias) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int i = 0; i < width; i += LANES) sum = _mm512_add_ps(sum, load(x + i, width - i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
    for (int i = 0; i < width; i += LANES) {
        const __m512 off = _mm512_maskz_sub_ps(lanes_left(width - i), load(x + i, width - i), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / (float)width;
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_sqrt_ps(_mm512_set1_ps(variance + LAYER_NORM_EPS)));
    for (int i = 0; i < width; i += LANES) {
        const int left = width - i;
        __m512 y = _mm512_mul_ps(_mm512_sub_ps(load(x + i, left), mean), inverse);
        if (scale) y = _mm512_mul_ps(y, load(scale + i, left));
        store(to + i, _mm512_add_ps(y, load(bias + i, left)), left);
    }
}

/* to = gelu(gate) · up. `to` may be gate. */
static void apply_gate(const float *gate, const float *up, float *to, int width) {
    for (int i = 0; i < width; i += LANES) {
        const int left = width - i;
        store(to + i, _mm512_mul_ps(gelu(load(gate + i, left)), load(up + i, left)), left);
    }
}

static void add_to(float *x, const float *y, int width) {
    for (int i = 0; i < width; i += LANES) {
        store(x + i, _mm512_add_ps(load(x + i, width - i), load(y + i, width - i)), width - i);
    }
}

/* Round one row of `width` floats to int8, a scale for each group; zeros fill the last group. */
static void quantise(const float *x, int width, Inputs to) {
    for (int group = 0; group * GROUP < width; group++) {
        const float *from = x + group * GROUP;
        const int left = width - group * GROUP;
        __m512 part[GROUP / LANES], largest = _mm512_setzero_ps();
        __mmask16 is_nan = 0; /* max would lose it, and with it the news that the weights are broken */
        for (int i = 0; i < GROUP / LANES; i++) {
            const int lanes = left - i * LANES;
            part[i] = lanes > 0 ? load(from + i * LANES, lanes) : _mm512_setzero_ps();
            is_nan |= _mm512_cmp_ps_mask(part[i], part[i], _CMP_UNORD_Q);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(part[i]));
        }
        const float range = is_nan ? __builtin_nanf("") : _mm512_reduce_max_ps(largest);
        const __m512 factor = _mm512_set1_ps(range > 0 ? 127 / range : 0);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < GROUP / LANES; i++) {
            const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(part[i], factor));
            sum = _mm512_add_epi32(sum, rounded);
            _mm_storeu_si128((__m128i *)(to.values + group * GROUP + i * LANES), _mm512_cvtsepi32_epi8(rounded));
        }
        to.scales[group] = range / 127;
        to.offsets[group] = -WEIGHT_OFFSET * _mm512_reduce_add_epi32(sum);
    }
}

/* One row of `width` floats as inputs of a product. */
static void put_row(const float *x, int width, Inputs to) {
    if (!to.is_exact) {
        quantise(x, width, to);
        return;
    }
    for (int i = 0; i < width; i += LANES) store(to.floats + i, load(x + i, width - i), width - i);
    for (int i = width; i % GROUP; i++) to.floats[i] = 0;
}
