/* x·Wᵀ with int8 weights and int8 inputs, each with a scale for every 64 inputs.
 *
 * Weights lie in the order in which they are read: tile by tile of 16 outputs, in a tile group by group of 64 inputs,
 * in a group 16 vectors of 4 inputs × 16 outputs, then the group's 16 scales. Bytes are the weight + 128, because
 * VPDPBUSD multiplies unsigned by signed; what that adds, 128 · Σx, is taken off at the start of a group's sum.
 *
 * A row's sums are whole numbers within a group, and the groups are added one after the other, so its bits do not
 * depend on how many rows there are.
 */
#pragma once
#include <stddef.h>
#include "vectors.h"

#define GROUP 64
#define WEIGHT_OFFSET 128
#define QUADS (GROUP / 4)
#define GROUP_BYTES (LANES * GROUP + LANES * (int)sizeof(float))
#define GROUPS_AHEAD 4 /* measured */

typedef struct {
    const uint8_t *weights; /* tiles × groups × GROUP_BYTES */
    int32_t tiles;
    int32_t groups;
} Product;

typedef struct {
    int8_t *values;   /* groups × 64 */
    float *scales;    /* groups */
    int32_t *offsets; /* groups: −128 · Σ values */
} QuantisedRow;

/* Many rows, `groups` apart. */
typedef QuantisedRow QuantisedRows;

static inline QuantisedRow row_of(QuantisedRows rows, int groups, int row) {
    const size_t first = (size_t)row * groups;
    return (QuantisedRow){rows.values + first * GROUP, rows.scales + first, rows.offsets + first};
}

/* What a pass over a tile asks memory for: pass `turn` of `passes` takes its part of the next tile, so that memory works
 * all the time; a single pass looks a few groups ahead instead. */
typedef struct {
    int turn, passes;
} Ahead;

static inline const char *ahead_of(const uint8_t *tile, int group, int groups, Ahead ahead) {
    const int next = ahead.passes == 1 ? group + GROUPS_AHEAD : groups + (group + ahead.turn * groups) / ahead.passes;
    return (const char *)tile + (size_t)next * GROUP_BYTES;
}

/* One tile for `count` rows, a constant wherever this is inlined: the accumulators are registers then. */
__attribute__((always_inline)) static inline void multiply_tile(
    const uint8_t *tile, int groups, QuantisedRow x, float *y, int stride, Ahead ahead, const int count) {
    __m512 sums[8];
    for (int row = 0; row < count; row++) sums[row] = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++) {
        const uint8_t *weights = tile + (size_t)group * GROUP_BYTES;
        const char *coming = ahead_of(tile, group, groups, ahead);
        __m512i dots[8];
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

/* Tiles [first, last) for all rows: y (rows, 16 · tiles). */
static void multiply(const Product *product, int first, int last, QuantisedRows x, int rows, float *y) {
    const int groups = product->groups, stride = product->tiles * LANES, passes = (rows + 7) / 8;
    for (int i = first; i < last; i++) {
        const uint8_t *tile = product->weights + (size_t)i * groups * GROUP_BYTES;
        for (int pass = 0; pass < passes; pass++) {
            const Ahead ahead = {pass, passes};
            const int row = 8 * pass, left = rows - row;
            const QuantisedRow from = row_of(x, groups, row);
            float *to = y + (size_t)row * stride + (size_t)i * LANES;
            switch (left < 8 ? left : 8) {
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
