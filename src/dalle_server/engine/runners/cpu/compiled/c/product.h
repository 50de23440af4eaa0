/* x·Wᵀ, exact in float32, or with int8 weights and int8 inputs, each with a scale for every 64 inputs.
 *
 * Weights lie in the order in which they are read: tile by tile of 16 outputs, in a tile group by group of 64 inputs.
 * A float32 group is 64 vectors, one an input. An int8 group is 16 vectors of 4 inputs × 16 outputs, then the group's
 * 16 scales.
 *
 * A row's terms are added one after the other (in an int8 group they are whole numbers), so its bits do not depend on
 * how many rows there are.
 */
#pragma once
#include <stddef.h>
#include "vectors.h"

#define GROUP 64
#define QUADS (GROUP / 4)
#define INT8_BYTES (LANES * GROUP + LANES * (int)sizeof(float)) /* a group's */
#define EXACT_BYTES (LANES * GROUP * (int)sizeof(float))
#define PARTS (LANES * 4 / (int)sizeof(Register)) /* registers of a tile's sums */
#define BYTES_AHEAD 4352                          /* what a single pass asks memory for before it is needed: measured */

typedef struct {
    const int8_t *weights; /* tiles × groups × INT8_BYTES or EXACT_BYTES */
    int32_t tiles;
    int32_t groups;
} Product;

/* Rows of inputs, the rows of a group side by side: floats (groups, rows, 64) where `is_exact`; or else values (groups,
 * rows, 64), scales (groups, rows) and sums (groups, rows), Σ values. `rows` is how many there is room for.
 */
typedef struct {
    float *floats;
    int8_t *values;
    float *scales;
    int32_t *sums;
    int32_t rows, is_exact;
} Inputs;

BEGIN_TARGET

/* Without the first `row` rows. */
INLINED Inputs row_of(Inputs x, int row) {
    const size_t at = (size_t)row * GROUP;
    return (Inputs){x.floats + at, x.values + at, x.scales + row, x.sums + row, x.rows, x.is_exact};
}

/* What a pass over a tile asks memory for: pass `turn` of `passes` takes its part of the next tile, so that memory
 * works all the time; a single pass looks a few groups ahead instead.
 */
typedef struct {
    int turn, passes;
} Ahead;

INLINED const int8_t *ahead_of(const int8_t *tile, int group, int groups, Ahead ahead, int bytes) {
    if (ahead.passes == 1) return tile + (size_t)group * bytes + BYTES_AHEAD;
    return tile + (size_t)(groups + (group + ahead.turn * groups) / ahead.passes) * bytes;
}

/* One tile for `count` rows, a constant wherever this is inlined: the sums are registers then. */
INLINED void multiply_exact(const int8_t *tile, int groups, Inputs x, float *y, int stride, Ahead ahead,
                            const int count) {
    Floats sums[ROWS];
    for (int row = 0; row < count; row++) sums[row] = filled(0);
    for (int group = 0; group < groups; group++) {
        const float *weights = (const float *)(tile + (size_t)group * EXACT_BYTES);
        const int8_t *coming = ahead_of(tile, group, groups, ahead, EXACT_BYTES);
#pragma clang loop unroll_count(8)
        for (int input = 0; input < GROUP; input++) {
            const Floats w = load_all(weights + LANES * input);
            __builtin_prefetch(coming + 64 * input);
            for (int row = 0; row < count; row++) {
                const float from = x.floats[((size_t)group * x.rows + row) * GROUP + input];
                sums[row] = fused(w, filled(from), sums[row]);
            }
        }
    }
    for (int row = 0; row < count; row++) store_all(y + (size_t)row * stride, sums[row]);
}

typedef struct {
    Register parts[PARTS];
} Dots;

INLINED void multiply_int8(const int8_t *tile, int groups, Inputs x, float *y, int stride, Ahead ahead,
                           const int count) {
    Floats sums[ROWS];
    for (int row = 0; row < count; row++) sums[row] = filled(0);
    for (int group = 0; group < groups; group++) {
        const int8_t *weights = tile + (size_t)group * INT8_BYTES;
        const int8_t *coming = ahead_of(tile, group, groups, ahead, INT8_BYTES);
        Dots dots[ROWS];
        for (int row = 0; row < count; row++) {
            const Ints start = (Ints)(-RAISED * x.sums[group * x.rows + row]);
            memcpy(&dots[row], &start, sizeof start);
        }
#pragma clang loop unroll(full)
        for (int quad = 0; quad < QUADS; quad++) {
            __builtin_prefetch(coming + 64 * quad);
            for (int part = 0; part < PARTS; part++) {
                const Weights w = load_weights(weights + 64 * quad + (int)sizeof(Register) * part);
                for (int row = 0; row < count; row++) {
                    int32_t four;
                    memcpy(&four, x.values + ((size_t)group * x.rows + row) * GROUP + 4 * quad, sizeof four);
                    dots[row].parts[part] = dot4(dots[row].parts[part], w, four);
                }
            }
        }
        const Floats scales = load_all((const float *)(weights + LANES * GROUP));
        for (int row = 0; row < count; row++) {
            Ints whole;
            memcpy(&whole, &dots[row], sizeof whole);
            const Floats scale = scales * x.scales[group * x.rows + row];
            sums[row] = fused(__builtin_convertvector(whole, Floats), scale, sums[row]);
        }
    }
    for (int row = 0; row < count; row++) store_all(y + (size_t)row * stride, sums[row]);
}

INLINED void multiply_tile(const int8_t *tile, int groups, Inputs x, float *y, int stride, Ahead ahead,
                           const int count) {
    if (x.is_exact) multiply_exact(tile, groups, x, y, stride, ahead, count);
    else multiply_int8(tile, groups, x, y, stride, ahead, count);
}

/* Tiles [first, last) for all rows: y (rows, 16 · tiles). */
static void multiply(const Product *product, int first, int last, Inputs x, int rows, float *y) {
    const int groups = product->groups, stride = product->tiles * LANES, passes = (rows + ROWS - 1) / ROWS;
    const size_t tile_bytes = (size_t)groups * (x.is_exact ? EXACT_BYTES : INT8_BYTES);
    for (int i = first; i < last; i++) {
        const int8_t *tile = product->weights + (size_t)i * tile_bytes;
        for (int pass = 0; pass < passes; pass++) {
            const Ahead ahead = {pass, passes};
            const int row = ROWS * pass, left = rows - row;
            const Inputs from = row_of(x, row);
            float *to = y + (size_t)row * stride + (size_t)i * LANES;
            switch (left < ROWS ? left : ROWS) {
#define CASE(count)                                                                                                    \
    case count: multiply_tile(tile, groups, from, to, stride, ahead, count <= ROWS ? count : ROWS); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            }
        }
    }
}

END_TARGET
