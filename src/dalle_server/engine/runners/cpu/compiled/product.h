/* x·Wᵀ, exact in float32, or with int8 weights and int8 inputs, each with a scale for every 64 inputs.
 *
 * Weights lie in the order in which they are read: tile by tile of 16 outputs, in a tile group by group of 64 inputs.
 * A float32 group is 64 vectors, one an input. An int8 group is 16 vectors of 4 inputs × 16 outputs, then the group's
 * 16 scales. Bytes are the weight + 128, because VPDPBUSD multiplies unsigned by signed; what that adds, 128 · Σx, is
 * taken off at the start of a group's sum.
 *
 * A row's terms are added one after the other (in an int8 group they are whole numbers), so its bits do not depend on
 * how many rows there are.
 */
#pragma once
#include <stddef.h>
#include "vectors.h"

#define GROUP 64
#define WEIGHT_OFFSET 128
#define QUADS (GROUP / 4)
#define INT8_BYTES (LANES * GROUP + LANES * (int)sizeof(float)) /* a group's */
#define EXACT_BYTES (LANES * GROUP * (int)sizeof(float))
#define ROWS 8           /* of a pass: their sums fill the registers */
#define BYTES_AHEAD 4352 /* what a single pass asks memory for before it is needed: measured */

typedef struct {
    const uint8_t *weights; /* tiles × groups × INT8_BYTES or EXACT_BYTES */
    int32_t tiles;
    int32_t groups;
} Product;

/* Rows of inputs: floats (rows, groups · 64) where `is_exact`; or else values (rows, groups · 64), scales (rows,
 * groups) and offsets (rows, groups), −128 · Σ values. */
typedef struct {
    float *floats;
    int8_t *values;
    float *scales;
    int32_t *offsets;
    int32_t is_exact;
} Inputs;

static inline Inputs row_of(Inputs x, int groups, int row) {
    const size_t first = (size_t)row * groups;
    return (Inputs){x.floats + first * GROUP, x.values + first * GROUP, x.scales + first, x.offsets + first,
                    x.is_exact};
}

/* What a pass over a tile asks memory for: pass `turn` of `passes` takes its part of the next tile, so that memory
 * works all the time; a single pass looks a few groups ahead instead. */
typedef struct {
    int turn, passes;
} Ahead;

static inline const char *ahead_of(const uint8_t *tile, int group, int groups, Ahead ahead, int bytes) {
    if (ahead.passes == 1) return (const char *)tile + (size_t)group * bytes + BYTES_AHEAD;
    return (const char *)tile + (size_t)(groups + (group + ahead.turn * groups) / ahead.passes) * bytes;
}

/* One tile for `count` rows, a constant wherever this is inlined: the sums are registers then. */
INLINED void multiply_exact(const uint8_t *tile, int groups, Inputs x, float *y, int stride, Ahead ahead,
                            const int count) {
    __m512 sums[ROWS];
    for (int row = 0; row < count; row++) sums[row] = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++) {
        const float *weights = (const float *)(tile + (size_t)group * EXACT_BYTES);
        const char *coming = ahead_of(tile, group, groups, ahead, EXACT_BYTES);
#pragma clang loop unroll_count(8)
        for (int input = 0; input < GROUP; input++) {
            const __m512 w = _mm512_loadu_ps(weights + LANES * input);
            _mm_prefetch(coming + 64 * input, _MM_HINT_T0);
            for (int row = 0; row < count; row++) {
                const float from = x.floats[((size_t)row * groups + group) * GROUP + input];
                sums[row] = _mm512_fmadd_ps(w, _mm512_set1_ps(from), sums[row]);
            }
        }
    }
    for (int row = 0; row < count; row++) _mm512_storeu_ps(y + (size_t)row * stride, sums[row]);
}

INLINED void multiply_int8(const uint8_t *tile, int groups, Inputs x, float *y, int stride, Ahead ahead,
                           const int count) {
    __m512 sums[ROWS];
    for (int row = 0; row < count; row++) sums[row] = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++) {
        const uint8_t *weights = tile + (size_t)group * INT8_BYTES;
        const char *coming = ahead_of(tile, group, groups, ahead, INT8_BYTES);
        __m512i dots[ROWS];
        for (int row = 0; row < count; row++) dots[row] = _mm512_set1_epi32(x.offsets[row * groups + group]);
#pragma clang loop unroll(full)
        for (int quad = 0; quad < QUADS; quad++) {
            const __m512i w = _mm512_loadu_si512(weights + 64 * quad);
            _mm_prefetch(coming + 64 * quad, _MM_HINT_T0);
            for (int row = 0; row < count; row++) {
                const int8_t *four = x.values + ((size_t)row * groups + group) * GROUP + 4 * quad;
                dots[row] = _mm512_dpbusd_epi32(dots[row], w, _mm512_set1_epi32(*(const int32_t *)four));
            }
        }
        const __m512 scales = _mm512_loadu_ps(weights + LANES * GROUP);
        for (int row = 0; row < count; row++) {
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scales[row * groups + group]));
            sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), scale, sums[row]);
        }
    }
    for (int row = 0; row < count; row++) _mm512_storeu_ps(y + (size_t)row * stride, sums[row]);
}

INLINED void multiply_tile(const uint8_t *tile, int groups, Inputs x, float *y, int stride, Ahead ahead,
                           const int count) {
    if (x.is_exact) multiply_exact(tile, groups, x, y, stride, ahead, count);
    else multiply_int8(tile, groups, x, y, stride, ahead, count);
}

/* Tiles [first, last) for all rows: y (rows, 16 · tiles). */
static void multiply(const Product *product, int first, int last, Inputs x, int rows, float *y) {
    const int groups = product->groups, stride = product->tiles * LANES, passes = (rows + ROWS - 1) / ROWS;
    const size_t tile_bytes = (size_t)groups * (x.is_exact ? EXACT_BYTES : INT8_BYTES);
    for (int i = first; i < last; i++) {
        const uint8_t *tile = product->weights + (size_t)i * tile_bytes;
        for (int pass = 0; pass < passes; pass++) {
            const Ahead ahead = {pass, passes};
            const int row = ROWS * pass, left = rows - row;
            const Inputs from = row_of(x, groups, row);
            float *to = y + (size_t)row * stride + (size_t)i * LANES;
            switch (left < ROWS ? left : ROWS) {
                case 8: multiply_tile(tile, groups, from, to, stride, ahead, 8); break;
                case 7: multiply_tile(tile, groups, from, to, stride, ahead, 7); break;
                case 6: multiply_tile(tile, groups, from, to, stride, ahead, 6); break;
                case 5: multiply_tile(tile, groups, from, to, stride, ahead, 5); break;
                case 4: multiply_tile(tile, groups, from, to, stride, ahead, 4); break;
                case 3: multiply_tile(tile, groups, from, to, stride, ahead, 3); break;
                case 2: multiply_tile(tile, groups, from, to, stride, ahead, 2); break;
                case 1: multiply_tile(tile, groups, from, to, stride, ahead, 1); break;
            }
        }
    }
}
