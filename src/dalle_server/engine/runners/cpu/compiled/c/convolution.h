/* Convolutions over feature maps: pixels in reading order, channels last, channels padded to whole tiles of 16.
 *
 * What a convolution reads is cut into units of four bytes: one float, or four channels in uint8. Against it stand 64
 * bytes of weights: a tile of 16 outputs, float32 or int8 × 4. So both kinds are one loop; only the multiply-add
 * differs. Weights lie in the order in which they are read: tiles × taps × units × 64 bytes.
 *
 * A block of PIXELS × TILES sums stays in registers. A sum adds its terms tap by tap and unit by unit, starting from 0;
 * then comes the scale (int8), the bias and the residual. None of that knows how wide a vector is.
 */
#pragma once
#include <stddef.h>
#include "vectors.h"

#define UNIT_BYTES 64  /* of weights */
#define ROW_GROUP 1024 /* pixels of a chunk: what it reads and its weights stay in the second cache */

typedef struct {
    const uint32_t *units; /* the first tap of pixel (0, 0) */
    const char *weights;
    const int32_t *start;  /* int8 only, (16 · tiles): what a sum begins with, (LOWERED − zero) · Σ weights */
    const float *scale;    /* int8 only, (16 · tiles): step of the inputs × step of the output's weights */
    const float *bias;     /* (16 · tiles) */
    const float *residual; /* NULL, or what is added, laid out as `to` */
    float *to;
    float *moments;  /* NULL, or (rows, 2, channels), of what was written: see Norm */
    int64_t taps[9]; /* in units from the first */
    int64_t unit_column, unit_row, float_column, float_row; /* from one output pixel to the next: in units, in floats */
    int32_t num_taps, num_units, tiles, rows, columns, is_exact;
} Convolution;

BEGIN_TARGET

/* Pixels `column`… of a row, `tiles` tiles from `tile`: sums in registers, then finished and stored. */
INLINED float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINED void convolve_block(const Convolution *c, int row, int column, int tile, const int pixels, const int tiles,
                            const int is_exact) {
    const size_t tile_bytes = (size_t)c->num_taps * c->num_units * UNIT_BYTES;
    const char *weights = c->weights + tile * tile_bytes;
    const uint32_t *first = c->units + row * c->unit_row + column * c->unit_column;
    Floats sums[MOST_PIXELS][TILES];
    Ints dots[MOST_PIXELS][TILES];
    for (int t = 0; t < tiles; t++) {
        for (int p = 0; p < pixels; p++) {
            if (is_exact) sums[p][t] = filled(0);
            else memcpy(&dots[p][t], c->start + LANES * (tile + t), sizeof dots[p][t]);
        }
    }
    for (int tap = 0; tap < c->num_taps; tap++) {
        const uint32_t *from = first + c->taps[tap];
        for (int unit = 0; unit < c->num_units; unit += 4, weights += 4 * UNIT_BYTES) {
#pragma clang loop unroll(full)
            for (int i = 0; i < 4; i++) {
                Floats w[TILES];
                for (int t = 0; t < tiles; t++) w[t] = load_all((const float *)(weights + t * tile_bytes) + i * LANES);
                for (int p = 0; p < pixels; p++) {
                    const uint32_t x = from[p * c->unit_column + unit + i];
                    for (int t = 0; t < tiles; t++) {
                        if (is_exact) sums[p][t] = fused(filled(as_float(x)), w[t], sums[p][t]);
                        else dots[p][t] = add_quad(dots[p][t], x, (Ints)w[t]);
                    }
                }
            }
        }
    }
#pragma clang loop unroll(full)
    for (int p = 0; p < pixels; p++) { /* the sums are registers only if no index is a variable */
        if (column + p >= c->columns) break;
        for (int t = 0; t < tiles; t++) {
            const ptrdiff_t at = row * c->float_row + (column + p) * c->float_column + LANES * (tile + t);
            const Floats bias = load_all(c->bias + LANES * (tile + t));
            Floats y;
            if (is_exact) y = sums[p][t] + bias;
            else {
                const Floats scale = load_all(c->scale + LANES * (tile + t));
                y = fused(__builtin_convertvector(dots[p][t], Floats), scale, bias);
            }
            if (c->residual) y += load_all(c->residual + at);
            store_all(c->to + at, y);
        }
    }
}

typedef void (*Block)(const Convolution *, int row, int column, int tile);

/* A function of its own for each kind of block: the compiler then has all registers for it. */
#define BLOCK(name, pixels, tiles, is_exact)                                                                           \
    static __attribute__((noinline)) void name(const Convolution *c, int row, int column, int tile) {                  \
        convolve_block(c, row, column, tile, pixels, tiles, is_exact);                                                 \
    }
BLOCK(exact_block, EXACT_PIXELS, TILES, 1)
BLOCK(int8_block, INT8_PIXELS, TILES, 0)
BLOCK(exact_tile, EXACT_PIXELS, 1, 1)
BLOCK(int8_tile, INT8_PIXELS, 1, 0)

/* Of one row and 16 channels: the mean, and the sum of squares around it. Four sums, because each addition waits for
 * the one before.
 */
static void measure(const float *from, int columns, int channels, float *mean_to, float *squares_to) {
    Floats sums[4] = {filled(0), filled(0), filled(0), filled(0)}, squares[4] = {sums[0], sums[0], sums[0], sums[0]};
    for (int i = 0; i < columns; i++) sums[i % 4] += load_all(from + (size_t)i * channels);
    const Floats mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)columns;
    for (int i = 0; i < columns; i++) {
        const Floats off = load_all(from + (size_t)i * channels) - mean;
        squares[i % 4] = fused(off, off, squares[i % 4]);
    }
    store_all(mean_to, mean);
    store_all(squares_to, (squares[0] + squares[1]) + (squares[2] + squares[3]));
}

static int rows_of_chunk(const Convolution *c) { return c->columns < ROW_GROUP ? ROW_GROUP / c->columns : 1; }

static int tile_groups(const Convolution *c) { return (c->tiles + TILES - 1) / TILES; }

static int chunks_of(const Convolution *c) {
    const int rows = rows_of_chunk(c);
    return (c->rows + rows - 1) / rows * tile_groups(c);
}

/* Some rows of the map, TILES tiles of outputs. */
static void convolve(const void *what, int chunk) {
    const Convolution *c = what;
    const int first = chunk / tile_groups(c) * rows_of_chunk(c), tile = chunk % tile_groups(c) * TILES;
    const int is_whole = tile + TILES <= c->tiles, pixels = c->is_exact ? EXACT_PIXELS : INT8_PIXELS;
    const Block whole = c->is_exact ? exact_block : int8_block, single = c->is_exact ? exact_tile : int8_tile;
    for (int row = first; row < first + rows_of_chunk(c) && row < c->rows; row++) {
        for (int t = tile; t < tile + TILES && t < c->tiles; t += is_whole ? TILES : 1) {
            for (int column = 0; column < c->columns; column += pixels) (is_whole ? whole : single)(c, row, column, t);
        }
        for (int t = tile; c->moments && t < tile + TILES && t < c->tiles; t++) { /* while the row is near */
            float *to = c->moments + row * 2 * c->float_column + t * LANES;
            measure(c->to + row * c->float_row + t * LANES, c->columns, (int)c->float_column, to, to + c->float_column);
        }
    }
}

END_TARGET
