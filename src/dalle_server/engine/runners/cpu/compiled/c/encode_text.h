/* One text, a row a token: through an encoder, with what every layer of the decoder looks up in it; or as a prefix,
 * each token seeing those before it, of which every layer's own keys and values are kept. A prefix may be read in
 * pieces, which its bits do not depend on.
 *
 * A text is never batched with another, and has no padding: only its own tokens are rows.
 */
#pragma once
#include "layers.h"

typedef struct {
    Stack stack;
    int32_t text_length, is_prefix;
    int32_t kept_heads, kept_size, cross_layers;
    const Product *cross_kv; /* (cross_layers) keys and values of the decoder's layers; none for a prefix */
} Encoder;

typedef struct {
    const Encoder *encoder;
    int32_t length;          /* of the whole text */
    int32_t first, rows;     /* this piece of it; an encoder's is the whole */
    const float *embeddings; /* (rows, width), token plus position */
    float *states;           /* (rows, width) */
    char *kept;              /* keys and values (layers, kept_heads, a head's of `length` positions): attention.h */
} Text;

BEGIN_TARGET

static void embed_token(const void *context, int row) {
    const Context *c = context;
    put_embedded(c, row, ((const Text *)c->call)->embeddings + (size_t)row * c->stack->width);
}

static HeadCache kept_head(const Context *c, int layer, int head) {
    const Text *text = c->call;
    const int heads = text->encoder->kept_heads, size = text->encoder->kept_size;
    return head_of(text->kept, (size_t)layer * heads + head, text->length, size, c->stack->cell);
}

/* What the layer itself looks at: a prefix at what is kept, an encoder at one layer's keys and values at a time. */
static HeadCache text_cache(const Context *c, int head) {
    const Encoder *encoder = ((const Text *)c->call)->encoder;
    if (encoder->is_prefix) return kept_head(c, (int)(c->layer - c->stack->layers), head);
    return head_of(c->layer->cache, head, encoder->text_length, c->stack->width / c->stack->heads, EXACT);
}

static int text_cell(const Context *c) {
    return ((const Text *)c->call)->encoder->is_prefix ? c->stack->cell : EXACT;
}

static void remember_token(const void *context, int row) {
    const Context *c = context;
    const int place = ((const Text *)c->call)->first + row;
    for (int head = 0; head < c->stack->kv_heads; head++) {
        const HeadCache cache = text_cache(c, head);
        float *key = y_of(c, row) + c->stack->width + (size_t)head * cache.head_size;
        turn_head(c, key, place);
        write_key_value(cache, place, key, key + (size_t)c->stack->kv_heads * cache.head_size, text_cell(c));
    }
}

static void attend_text(const void *context, int chunk) {
    const Context *c = context;
    const int row = chunk / c->stack->heads, head = chunk % c->stack->heads;
    const Text *text = c->call;
    const int place = text->first + row, seen = text->encoder->is_prefix ? place + 1 : text->length;
    const Span span = {text_cache(c, head / (c->stack->heads / c->stack->kv_heads)), seen};
    const size_t at = (size_t)head * span.cache.head_size;
    turn_head(c, y_of(c, row) + at, place);
    attend(&span, 1, y_of(c, row) + at, mixed_of(c, row) + at, text_cell(c));
}

static void finish_token(const void *context, int row) {
    const Context *c = context;
    finish(c, row);
    memcpy(((const Text *)c->call)->states + (size_t)row * c->stack->width, x_of(c, row),
           (size_t)c->stack->width * sizeof(float));
    put_input(c, row, x_of(c, row), c->stack->width);
}

/* What the decoder layer whose product was the last keeps of one token: keys, then values. */
static void remember_cross(const void *context, int row) {
    const Context *c = context;
    const Encoder *encoder = ((const Text *)c->call)->encoder;
    const float *keys = y_of(c, row);
    for (int head = 0; head < encoder->kept_heads; head++) {
        const HeadCache cache = kept_head(c, (int)(c->product - encoder->cross_kv), head);
        const float *key = keys + (size_t)head * cache.head_size;
        write_key_value(cache, row, key, key + (size_t)encoder->kept_heads * cache.head_size, c->stack->cell);
    }
}

static void run_text(const Text *text) {
    const Encoder *encoder = text->encoder;
    const Stack *stack = &encoder->stack;
    Context c = {.stack = stack, .call = text, .phase = stack->phases};
    const int rows = text->rows;
    for (int index = 0; index < stack->num_layers; index++) {
        const Layer *layer = c.layer = &stack->layers[index];
        in_chunks(&c, rows, index ? enter_layer : embed_token);
        multiply_shared(&c, &layer->qkv, rows, stack->y);
        in_chunks(&c, rows, remember_token);
        in_chunks(&c, rows * stack->heads, attend_text);
        in_chunks(&c, rows, leave_attention);
        multiply_shared(&c, &layer->out, rows, stack->y);
        feed_forward(&c, rows);
    }
    in_chunks(&c, rows, finish_token);
    for (int layer = 0; layer < encoder->cross_layers; layer++) {
        multiply_shared(&c, &encoder->cross_kv[layer], rows, stack->y);
        in_chunks(&c, rows, remember_cross);
    }
}

END_TARGET
