/* One head of one row: softmax(q·kᵀ)·v over float16 keys and values. The 1/√D is in the query's weights.
 *
 * Keys lie in blocks of 16 positions, (blocks, D, 16), so that a block's 16 scores are one vector; values lie by
 * position, (positions, D rounded up to 16). Cells past `length` are never used, whatever they hold.
 */
#pragma once
#include "vectors.h"

#define MAX_POSITIONS 4096

typedef struct {
    uint16_t *keys;   /* (ceil(positions/16), D, 16) */
    uint16_t *values; /* (positions, width) */
    int32_t head_size; /* D */
    int32_t width;     /* D rounded up to 16 */
} HeadCache;

static void write_key_value(HeadCache cache, int position, const float *key, const float *value) {
    uint16_t *keys = cache.keys + (size_t)(position / LANES) * cache.head_size * LANES + position % LANES;
    uint16_t *values = cache.values + (size_t)position * cache.width;
    for (int i = 0; i < cache.head_size; i += LANES) {
        uint16_t halves[LANES];
        _mm256_storeu_si256((__m256i *)halves, to_half(load(key + i, cache.head_size - i)));
        for (int lane = 0; lane < LANES && i + lane < cache.head_size; lane++) keys[(i + lane) * LANES] = halves[lane];
        _mm256_storeu_si256((__m256i *)(values + i), to_half(load(value + i, cache.head_size - i)));
    }
}

/* Scores of a block of 16 keys. Four sums, because each multiply-add waits for the one before. */
static inline __m512 block_scores(const uint16_t *keys, const float *query, int head_size) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int i = 0;
    for (; i + 4 <= head_size; i += 4) {
        for (int part = 0; part < 4; part++) {
            const __m512 key = load_half(keys + (size_t)(i + part) * LANES);
            sums[part] = _mm512_fmadd_ps(key, _mm512_set1_ps(query[i + part]), sums[part]);
        }
    }
    for (; i < head_size; i++) sums[0] = _mm512_fmadd_ps(load_half(keys + (size_t)i * LANES), _mm512_set1_ps(query[i]), sums[0]);
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

/* Σ weight · value over `vectors` vectors (a constant: registers) of each position, divided by `sum`. */
__attribute__((always_inline)) static inline void mix(
    const uint16_t *values, int width, int length, const float *weights, float sum, float *to, int left, const int vectors) {
    __m512 mixed[4];
    for (int v = 0; v < vectors; v++) mixed[v] = _mm512_setzero_ps();
    for (int i = 0; i < length; i++, values += width) {
        const __m512 weight = _mm512_set1_ps(weights[i]);
        for (int v = 0; v < vectors; v++) mixed[v] = _mm512_fmadd_ps(weight, load_half(values + v * LANES), mixed[v]);
    }
    for (int v = 0; v < vectors; v++) store(to + v * LANES, _mm512_div_ps(mixed[v], _mm512_set1_ps(sum)), left - v * LANES);
}

/* query (D) against the first `length` positions → to (D). */
static void attend(HeadCache cache, int length, const float *query, float *to) {
    float scores[MAX_POSITIONS];
    for (int i = 0; i < length; i += LANES) {
        _mm512_storeu_ps(scores + i, block_scores(cache.keys + (size_t)i * cache.head_size, query, cache.head_size));
    }
    const float sum = exponentials(scores, length);
    int at = 0;
    for (; at + 4 * LANES <= cache.width; at += 4 * LANES) {
        mix(cache.values + at, cache.width, length, scores, sum, to + at, cache.head_size - at, 4);
    }
    for (; at < cache.width; at += LANES) {
        mix(cache.values + at, cache.width, length, scores, sum, to + at, cache.head_size - at, 1);
    }
}
