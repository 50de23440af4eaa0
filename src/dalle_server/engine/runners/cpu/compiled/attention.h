/* One head of one row: softmax(q·kᵀ)·v over keys and values in float16, or float32. The 1/√D is in the query's weights.
 *
 * Keys lie in blocks of 16 positions, (blocks, D, 16), so that a block's 16 scores are one vector; values lie by
 * position, (positions, D rounded up to 16). Cells past `length` are never used, whatever they hold.
 */
#pragma once
#include "vectors.h"

#define MAX_POSITIONS 4096 /* of a grid, or of a text */

typedef struct {
    char *keys;        /* (ceil(positions/16), D, 16) */
    char *values;      /* (positions, width) */
    int32_t head_size; /* D */
    int32_t width;     /* D rounded up to 16 */
    int32_t is_exact;  /* cells are float32 */
} HeadCache;

INLINED __m512 load_cells(const char *cells, size_t at, const int is_exact) {
    return is_exact ? _mm512_loadu_ps((const float *)cells + at) : load_half((const uint16_t *)cells + at);
}

static void write_key_value(HeadCache cache, int position, const float *key, const float *value) {
    const size_t keys = (size_t)(position / LANES) * cache.head_size * LANES + position % LANES;
    const size_t values = (size_t)position * cache.width;
    for (int i = 0; i < cache.head_size; i += LANES) {
        const int left = cache.head_size - i;
        const __m512 some_keys = load(key + i, left), some_values = load(value + i, left);
        if (cache.is_exact) {
            float *to = (float *)cache.keys + keys;
            for (int lane = 0; lane < LANES && lane < left; lane++) to[(i + lane) * LANES] = key[i + lane];
            _mm512_storeu_ps((float *)cache.values + values + i, some_values);
        } else {
            uint16_t *to = (uint16_t *)cache.keys + keys, halves[LANES];
            _mm256_storeu_si256((__m256i *)halves, to_half(some_keys));
            for (int lane = 0; lane < LANES && lane < left; lane++) to[(i + lane) * LANES] = halves[lane];
            _mm256_storeu_si256((__m256i *)((uint16_t *)cache.values + values + i), to_half(some_values));
        }
    }
}

/* Scores of a block of 16 keys. Four sums, because each multiply-add waits for the one before. */
INLINED __m512 block_scores(const char *keys, size_t at, const float *query, int head_size, const int is_exact) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int i = 0;
    for (; i + 4 <= head_size; i += 4) {
        for (int part = 0; part < 4; part++) {
            const __m512 key = load_cells(keys, at + (size_t)(i + part) * LANES, is_exact);
            sums[part] = _mm512_fmadd_ps(key, _mm512_set1_ps(query[i + part]), sums[part]);
        }
    }
    for (; i < head_size; i++) {
        sums[0] =
            _mm512_fmadd_ps(load_cells(keys, at + (size_t)i * LANES, is_exact), _mm512_set1_ps(query[i]), sums[0]);
    }
    return _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
}

/* scores[0…length) → e^(score − largest), zeros up to a whole vector; returns their sum. */
static float exponentials(float *scores, int length) {
    __m512 largest = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
    for (int i = 0; i < length; i += LANES) {
        largest = _mm512_mask_max_ps(largest, lanes_left(length - i), largest, _mm512_loadu_ps(scores + i));
    }
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int i = 0; i < length; i += LANES) {
        const __m512 weights = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + i), largest));
        const __m512 kept = _mm512_maskz_mov_ps(lanes_left(length - i), weights);
        _mm512_storeu_ps(scores + i, kept);
        sum = _mm512_add_ps(sum, kept);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Σ weight · value / sum over `vectors` vectors (a constant: registers) of each position, from `at` of each. */
INLINED void mix(HeadCache cache, int length, const float *weights, float sum, int at, float *to, const int vectors,
                 const int is_exact) {
    __m512 mixed[4];
    for (int v = 0; v < vectors; v++) mixed[v] = _mm512_setzero_ps();
    for (int i = 0; i < length; i++) {
        const __m512 weight = _mm512_set1_ps(weights[i]);
        for (int v = 0; v < vectors; v++) {
            const __m512 value = load_cells(cache.values, (size_t)i * cache.width + at + v * LANES, is_exact);
            mixed[v] = _mm512_fmadd_ps(weight, value, mixed[v]);
        }
    }
    for (int v = 0; v < vectors; v++) {
        const int first = at + v * LANES;
        store(to + first, _mm512_div_ps(mixed[v], _mm512_set1_ps(sum)), cache.head_size - first);
    }
}

INLINED void attend_cells(HeadCache cache, int length, const float *query, float *to, const int is_exact) {
    float scores[MAX_POSITIONS];
    for (int i = 0; i < length; i += LANES) {
        const size_t at = (size_t)i * cache.head_size;
        _mm512_storeu_ps(scores + i, block_scores(cache.keys, at, query, cache.head_size, is_exact));
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
