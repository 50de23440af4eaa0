/* One text, a row a token: through an encoder, with what every layer of the decoder looks up in it; or as a prefix,
 * each token seeing those before it, of which every layer's own keys and values are kept.
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
    int32_t length;
    const float *embeddings; /* (length, width), token plus position */
    float *states;           /* (length, width) */
    char *keys_values;       /* (layers, 2, kept_heads, length, kept_size) float16, or float32 where all is */
} Text;

BEGIN_TARGET

static void embed_token(const void *context, int row) {
    const Context *c = context;
    put_embedded(c, row, ((const Text *)c->call)->embeddings + (size_t)row * c->stack->width);
}

/* What is kept of one token and layer, from `heads` keys and as many values one after the other. */
static void keep_token(const Context *c, int layer, int row, const float *from) {
    const Text *text = c->call;
    const int heads = text->encoder->kept_heads, size = text->encoder->kept_size;
    for (int part = 0; part < 2 * heads; part++) {
        const size_t to = (((size_t)layer * 2 * heads + part) * text->length + row) * size;
        put_cells(text->keys_values, to, from + (size_t)part * size, size, c->stack->inputs.is_exact);
    }
}

static HeadCache text_cache(const Context *c, int head) {
    const Encoder *encoder = ((const Text *)c->call)->encoder;
    return head_of(c->layer->keys, c->layer->values, head, encoder->text_length, c->stack->width / c->stack->heads, 1);
}

static void remember_token(const void *context, int row) {
    const Context *c = context;
    float *keys = y_of(c, row) + c->stack->width;
    for (int head = 0; head < c->stack->kv_heads; head++) {
        const HeadCache cache = text_cache(c, head);
        float *key = keys + (size_t)head * cache.head_size;
        turn_head(c, key, row);
        write_key_value(cache, row, key, key + (size_t)c->stack->kv_heads * cache.head_size);
    }
    if (((const Text *)c->call)->encoder->is_prefix) keep_token(c, (int)(c->layer - c->stack->layers), row, keys);
}

static void attend_text(const void *context, int chunk) {
    const Context *c = context;
    const int row = chunk / c->stack->heads, head = chunk % c->stack->heads;
    const Text *text = c->call;
    const HeadCache cache = text_cache(c, head / (c->stack->heads / c->stack->kv_heads));
    const size_t at = (size_t)head * cache.head_size;
    turn_head(c, y_of(c, row) + at, row);
    attend(cache, text->encoder->is_prefix ? row + 1 : text->length, y_of(c, row) + at, mixed_of(c, row) + at);
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
    keep_token(c, (int)(c->product - ((const Text *)c->call)->encoder->cross_kv), row, y_of(c, row));
}

static void run_text(const Text *text) {
    const Encoder *encoder = text->encoder;
    const Stack *stack = &encoder->stack;
    Context c = {.stack = stack, .call = text, .phase = stack->phases};
    const int rows = text->length;
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
