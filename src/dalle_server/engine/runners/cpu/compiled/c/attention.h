/* One head of one row: softmax(q·kᵀ)·v over keys and values in float16, or float32. The 1/√D is in the query's weights.
 *
 * Keys lie in blocks of 16 positions, (blocks, D, 16), so that a block's 16 scores are one vector; values lie by
 * position, (positions, D rounded up to 16). Cells past `length` are never used, whatever they hold.
 */
#pragma once
#include <stddef.h>
#include "vectors.h"

#define MAX_POSITIONS 4096 /* of a grid, or of a text */

typedef struct {
    char *keys;        /* (ceil(positions/16), D, 16) */
    char *values;      /* (positions, width) */
    int32_t head_size; /* D */
    int32_t width;     /* D rounded up to 16 */
    int32_t is_exact;  /* cells are float32 */
} HeadCache;

BEGIN_TARGET

/* Head `index` of caches that hold so many positions. */
static HeadCache head_of(char *keys, char *values, size_t index, int positions, int head_size, int is_exact) {
    const size_t blocks = (positions + LANES - 1) / LANES, width = (head_size + LANES - 1) / LANES * LANES;
    const size_t cell = is_exact ? 4 : 2;
    return (HeadCache){keys + index * cell * blocks * LANES * head_size, values + index * cell * positions * width,
                       head_size, (int32_t)width, is_exact};
}

INLINED Floats load_cells(const char *cells, size_t at, const int is_exact) {
    if (is_exact) return load_all((const float *)cells + at);
    Halves x;
    memcpy(&x, (const uint16_t *)cells + at, sizeof x);
    return from_halves(x);
}

/* cells[at…at + count) = x. */
static void put_cells(char *cells, size_t at, const float *x, int count, int is_exact) {
    if (is_exact) {
        memcpy((float *)cells + at, x, (size_t)count * sizeof *x);
        return;
    }
    for (int i = 0; i < count; i += LANES) {
        const Halves halves = to_halves(load(x + i, count - i));
        memcpy((uint16_t *)cells + at + i, &halves, sizeof(uint16_t) * (count - i < LANES ? count - i : LANES));
    }
}

static void write_key_value(HeadCache cache, int position, const float *key, const float *value) {
    const size_t keys = (size_t)(position / LANES) * cache.head_size * LANES + position % LANES;
    put_cells(cache.values, (size_t)position * cache.width, value, cache.head_size, cache.is_exact);
    for (int i = 0; i < cache.head_size; i++) put_cells(cache.keys, keys + i * LANES, key + i, 1, cache.is_exact);
}

/* Scores of a block of 16 keys. Four sums, because each multiply-add waits for the one before. */
INLINED Floats block_scores(const char *keys, size_t at, const float *query, int head_size, const int is_exact) {
    Floats sums[4] = {filled(0), filled(0), filled(0), filled(0)};
    int i = 0;
    for (; i + 4 <= head_size; i += 4) {
        for (int part = 0; part < 4; part++) {
            const Floats key = load_cells(keys, at + (size_t)(i + part) * LANES, is_exact);
            sums[part] = fused(key, filled(query[i + part]), sums[part]);
        }
    }
    for (; i < head_size; i++) {
        sums[0] = fused(load_cells(keys, at + (size_t)i * LANES, is_exact), filled(query[i]), sums[0]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* scores[0…length) → e^(score − largest), zeros up to a whole vector; returns their sum. */
static float exponentials(float *scores, int length) {
    Floats largest = filled(-__builtin_inff()), sum = filled(0);
    for (int i = 0; i < length; i += LANES) {
        const Floats some = load_all(scores + i);
        largest = (first_lanes(length - i) & (some > largest)) ? some : largest;
    }
    largest = filled(largest_of(largest));
    for (int i = 0; i < length; i += LANES) {
        const Floats kept = keep(first_lanes(length - i), exponential(load_all(scores + i) - largest));
        store_all(scores + i, kept);
        sum += kept;
    }
    return sum_of(sum);
}

/* Σ weight · value / sum over `vectors` vectors (a constant: registers) of each position, from `at` of each. */
INLINED void mix(HeadCache cache, int length, const float *weights, float sum, int at, float *to, const int vectors,
                 const int is_exact) {
    Floats mixed[4];
    for (int v = 0; v < vectors; v++) mixed[v] = filled(0);
    for (int i = 0; i < length; i++) {
        const Floats weight = filled(weights[i]);
        for (int v = 0; v < vectors; v++) {
            const Floats value = load_cells(cache.values, (size_t)i * cache.width + at + v * LANES, is_exact);
            mixed[v] = fused(weight, value, mixed[v]);
        }
    }
    for (int v = 0; v < vectors; v++) {
        const int first = at + v * LANES;
        store(to + first, mixed[v] / sum, cache.head_size - first);
    }
}

INLINED void attend_cells(HeadCache cache, int length, const float *query, float *to, const int is_exact) {
    float scores[MAX_POSITIONS];
    for (int i = 0; i < length; i += LANES) {
        const size_t at = (size_t)i * cache.head_size;
        store_all(scores + i, block_scores(cache.keys, at, query, cache.head_size, is_exact));
    }
    const float sum = exponentials(scores, length);
    int at = 0;
    for (; at + 4 * LANES <= cache.width; at += 4 * LANES) mix(cache, length, scores, sum, at, to, 4, is_exact);
    for (; at < cache.width; at += LANES) mix(cache, length, scores, sum, at, to, 1, is_exact);
}

/* query (D) against the first `length` positions → to (D). */
static void attend(HeadCache cache, int length, const float *query, float *to) {
    if (cache.is_exact) attend_cells(cache, length, query, to, 1);
    else attend_cells(cache, length, query, to, 0);
}

END_TARGET
