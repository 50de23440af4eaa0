/* What happens to one row between two products: norms, the gate, and rounding to int8. */
#pragma once
#include "product.h"

#define LAYER_NORM_EPS 1e-5f

BEGIN_TARGET

/* What a norm multiplies with and adds; NULL: 1 and 0. One that has neither does not exist. */
typedef struct {
    const float *scale, *bias;
} RowNorm;

/* to = (x − mean)/√(variance + ε) · scale + bias over `width` values. `to` may be x. With an ε of its own it is a norm
 * by the root of the mean square: the mean counts as 0.
 */
static void normalise(const float *x, float *to, int width, RowNorm norm, float rms_eps) {
    Floats sum = filled(0), squares = filled(0);
    for (int i = 0; i < width; i += LANES) sum += load(x + i, width - i);
    const Floats mean = filled(rms_eps ? 0 : sum_of(sum) / (float)width);
    for (int i = 0; i < width; i += LANES) {
        const Floats off = keep(first_lanes(width - i), load(x + i, width - i) - mean);
        squares = fused(off, off, squares);
    }
    const float variance = sum_of(squares) / (float)width;
    const Floats inverse = 1.0f / __builtin_elementwise_sqrt(filled(variance + (rms_eps ? rms_eps : LAYER_NORM_EPS)));
    for (int i = 0; i < width; i += LANES) {
        const int left = width - i;
        Floats y = (load(x + i, left) - mean) * inverse;
        if (norm.scale) y *= load(norm.scale + i, left);
        if (norm.bias) y += load(norm.bias + i, left);
        store(to + i, y, left);
    }
}

/* to = gelu(gate) · up, or swish(gate) · up. `to` may be gate. */
static void apply_gate(const float *gate, const float *up, float *to, int width, int is_swish) {
    for (int i = 0; i < width; i += LANES) {
        const int left = width - i;
        const Floats x = load(gate + i, left);
        store(to + i, (is_swish ? swish(x) : gelu(x)) * load(up + i, left), left);
    }
}

static void add_to(float *x, const float *y, int width) {
    for (int i = 0; i < width; i += LANES) store(x + i, load(x + i, width - i) + load(y + i, width - i), width - i);
}

/* The first `half` numbers turn with those behind them, by an angle each: its cosines, then its sines, in `turns`. */
static void turn(float *x, const float *turns, int half) {
    for (int i = 0; i < half; i += LANES) {
        const int left = half - i;
        const Floats first = load(x + i, left), second = load(x + half + i, left);
        const Floats cosine = load(turns + i, left), sine = load(turns + half + i, left);
        store(x + i, first * cosine - second * sine, left);
        store(x + half + i, second * cosine + first * sine, left);
    }
}

/* Round one row of `width` floats to int8, a scale for each group; zeros fill the last group. A group that is not all
 * finite has a scale that is not either: whoever draws from the result is to notice.
 */
static void quantise(const float *x, int width, Inputs to) {
    for (int group = 0; group * GROUP < width; group++) {
        const float *from = x + group * GROUP;
        const int left = width - group * GROUP;
        Floats part[GROUP / LANES], largest = filled(0);
        Ints is_nan = (Ints)0; /* `larger` would lose it */
        for (int i = 0; i < GROUP / LANES; i++) {
            const int lanes = left - i * LANES;
            part[i] = lanes > 0 ? load(from + i * LANES, lanes) : filled(0);
            is_nan |= part[i] != part[i];
            largest = larger(absolute(part[i]), largest);
        }
        const float range = __builtin_reduce_or(is_nan) ? __builtin_nanf("") : largest_of(largest);
        const float factor = range > 0 ? 127 / range : 0;
        Ints sum = (Ints)0;
        for (int i = 0; i < GROUP / LANES; i++) {
            const Ints rounded = to_int8(part[i] * factor);
            const SignedBytes bytes = __builtin_convertvector(rounded, SignedBytes);
            memcpy(to.values + (size_t)group * to.rows * GROUP + i * LANES, &bytes, sizeof bytes);
            sum += rounded;
        }
        to.scales[group * to.rows] = range / 127;
        to.sums[group * to.rows] = __builtin_reduce_add(sum);
    }
}

/* One row of `width` floats as inputs of a product; zeros fill the last group. */
static void put_row(const float *x, int width, Inputs to) {
    if (!to.is_exact) {
        quantise(x, width, to);
        return;
    }
    for (int i = 0; i < width; i += GROUP) {
        float *group = to.floats + (size_t)i * to.rows;
        const int count = width - i < GROUP ? width - i : GROUP;
        memcpy(group, x + i, (size_t)count * sizeof *x);
        memset(group + count, 0, (size_t)(GROUP - count) * sizeof *x);
    }
}

END_TARGET
