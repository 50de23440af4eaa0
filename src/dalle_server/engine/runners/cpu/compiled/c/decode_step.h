/* One token of every running image: the decoder at one new position a row, each row at a position of its own.
 *
 * An image has a conditional row, and an unconditional one if it is guided: rows 0…N−1 and N…N+G−1 of a step, whose first
 * G images are the guided ones. In the caches these are rows 2s and 2s + 1 for an image in slot s. Every thread calls
 * `run_step` with the same arguments.
 */
#pragma once
#include "layers.h"

typedef struct {
    Stack stack;
    int32_t num_positions; /* of a layer's caches: the picture's */
    int32_t is_prefixed;   /* the texts are in front of the pictures, and positions count from their beginning */
    Product lm_head, head_proj;         /* head_proj: what else is between the last norm and lm_head, and a GELU */
    const float *head_bias;
    char *const *texts; /* of each row of the caches: what encode_text.h kept of its text */
    const int32_t *text_lengths;
} Decoder;

typedef struct {
    const Decoder *decoder;
    int32_t images, guided;
    const int32_t *slots, *positions; /* (images) */
    const float *guidance;            /* (guided) */
    const float *embeddings;          /* (images, width), token plus position */
    float *logits;                    /* (images, 16 · lm_head.tiles), guided */
} Step;

BEGIN_TARGET

static void embed(const void *context, int row) {
    const Context *c = context;
    const Step *step = c->call;
    put_embedded(c, row, step->embeddings + (size_t)(row % step->images) * c->stack->width);
}

static int cache_row(const Step *step, int row) { return 2 * step->slots[row % step->images] + (row >= step->images); }

static Span text_span(const Context *c, int row, int head) {
    const Decoder *decoder = ((const Step *)c->call)->decoder;
    const Stack *stack = c->stack;
    const int at = cache_row(c->call, row), length = decoder->text_lengths[at];
    const size_t index = (size_t)(c->layer - stack->layers) * stack->kv_heads + head;
    return (Span){head_of(decoder->texts[at], index, length, stack->width / stack->heads, stack->cell), length};
}

static void attend_self(const void *context, int chunk) {
    const Context *c = context;
    const Step *step = c->call;
    const Stack *stack = c->stack;
    const Decoder *decoder = step->decoder;
    const int kv_heads = stack->kv_heads, shared = stack->heads / kv_heads, size = stack->width / stack->heads;
    const int row = chunk / kv_heads, head = chunk % kv_heads, position = step->positions[row % step->images];
    Span spans[MAX_SPANS];
    int count = 0, place = position;
    if (decoder->is_prefixed) {
        spans[count++] = text_span(c, row, head);
        place += spans->length;
    }
    const size_t index = (size_t)cache_row(step, row) * kv_heads + head;
    const HeadCache cache = head_of(c->layer->cache, index, decoder->num_positions, size, stack->cell);
    spans[count++] = (Span){cache, position + 1};
    float *key = y_of(c, row) + stack->width + (size_t)head * size;
    turn_head(c, key, place);
    write_key_value(cache, position, key, key + (size_t)kv_heads * size, stack->cell);
    for (int i = head * shared; i < (head + 1) * shared; i++) {
        const size_t at = (size_t)i * size;
        turn_head(c, y_of(c, row) + at, place);
        attend(spans, count, y_of(c, row) + at, mixed_of(c, row) + at, stack->cell);
    }
}

static void attend_cross(const void *context, int chunk) {
    const Context *c = context;
    const int row = chunk / c->stack->heads, head = chunk % c->stack->heads;
    const Span span = text_span(c, row, head);
    const size_t at = (size_t)head * span.cache.head_size;
    attend(&span, 1, y_of(c, row) + at, mixed_of(c, row) + at, c->stack->cell);
}

static void enter_head(const void *context, int row) {
    const Context *c = context;
    finish(c, row);
    put_input(c, row, x_of(c, row), c->stack->width);
}

/* A row as lm_head reads it. */
static const float *finished(const Context *c, int row) {
    const Decoder *decoder = ((const Step *)c->call)->decoder;
    const int width = c->stack->width;
    if (!decoder->head_proj.tiles) {
        finish(c, row);
        return x_of(c, row);
    }
    float *h = y_of(c, row);
    for (int i = 0; i < width; i += LANES) {
        store(h + i, gelu(load(h + i, width - i) + load(decoder->head_bias + i, width - i)), width - i);
    }
    return h;
}

/* lm_head's bias is left to the caller, so mixing its inputs gives the mixed logits at half the work. */
static void guide(const void *context, int image) {
    const Context *c = context;
    const Step *step = c->call;
    const int width = c->stack->width;
    const float *conditional = finished(c, image);
    if (image >= step->guided) {
        put_input(c, image, conditional, width);
        return;
    }
    const float *unconditional = finished(c, step->images + image);
    float *guided = mixed_of(c, image);
    for (int i = 0; i < width; i += LANES) {
        const Floats base = load(unconditional + i, width - i);
        const Floats away = load(conditional + i, width - i) - base;
        store(guided + i, base + away * step->guidance[image], width - i);
    }
    put_input(c, image, guided, width);
}

static void run_step(const Step *step) {
    const Decoder *decoder = step->decoder;
    const Stack *stack = &decoder->stack;
    Context c = {.stack = stack, .call = step, .phase = stack->phases};
    const int rows = step->images + step->guided, heads = rows * stack->heads, kv_heads = rows * stack->kv_heads;
    for (int index = 0; index < stack->num_layers; index++) {
        const Layer *layer = c.layer = &stack->layers[index];
        in_chunks(&c, rows, index ? enter_layer : embed);
        multiply_shared(&c, &layer->qkv, rows, stack->y);
        in_chunks(&c, kv_heads, attend_self);
        in_chunks(&c, rows, leave_attention);
        multiply_shared(&c, &layer->out, rows, stack->y);
        if (layer->cross_q.tiles) {
            in_chunks(&c, rows, enter_cross_attention);
            multiply_shared(&c, &layer->cross_q, rows, stack->y);
            in_chunks(&c, heads, attend_cross);
            in_chunks(&c, rows, leave_attention);
            multiply_shared(&c, &layer->cross_out, rows, stack->y);
        }
        feed_forward(&c, rows);
    }
    if (decoder->head_proj.tiles) {
        in_chunks(&c, rows, enter_head);
        multiply_shared(&c, &decoder->head_proj, rows, stack->y);
    }
    in_chunks(&c, step->images, guide);
    multiply_shared(&c, &decoder->lm_head, step->images, step->logits);
}

END_TARGET
