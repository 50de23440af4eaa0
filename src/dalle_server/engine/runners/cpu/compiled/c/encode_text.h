/* One text through the encoder, a row a token, and what every layer of the decoder looks up in it.
 *
 * A text is never batched with another, and has no padding: only its own tokens are rows.
 */
#pragma once
#include "layers.h"

typedef struct {
    Stack stack;
    int32_t text_length, cross_layers, cross_heads;
    const Product *cross_kv; /* (cross_layers) keys and values of the decoder's layers */
} Encoder;

typedef struct {
    const Encoder *encoder;
    int32_t length;
    const float *embeddings; /* (length, width), token plus position */
    float *states;           /* (length, width) */
    char *keys_values;       /* (cross_layers, 2, cross_heads, length, D) float16, or float32 where all is */
} Text;

BEGIN_TARGET

static void embed_token(const void *context, int row) {
    const Context *c = context;
    put_embedded(c, row, ((const Text *)c->call)->embeddings + (size_t)row * c->stack->width);
}

static HeadCache text_cache(const Context *c, int head) {
    const Encoder *encoder = ((const Text *)c->call)->encoder;
    return head_of(c->layer->keys, c->layer->values, head, encoder->text_length, c->stack->width / c->stack->heads, 1);
}

static void remember_token(const void *context, int row) {
    const Context *c = context;
    for (int head = 0; head < c->stack->heads; head++) {
        const HeadCache cache = text_cache(c, head);
        const float *query = y_of(c, row) + (size_t)head * cache.head_size;
        write_key_value(cache, row, query + c->stack->width, query + 2 * c->stack->width);
    }
}

static void attend_text(const void *context, int chunk) {
    const Context *c = context;
    const int row = chunk / c->stack->heads, head = chunk % c->stack->heads;
    const HeadCache cache = text_cache(c, head);
    const size_t at = (size_t)head * cache.head_size;
    attend(cache, ((const Text *)c->call)->length, y_of(c, row) + at, mixed_of(c, row) + at);
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
    const Text *text = c->call;
    const int layer = (int)(c->product - text->encoder->cross_kv), heads = text->encoder->cross_heads;
    const int size = c->stack->width / heads;
    for (int part = 0; part < 2 * heads; part++) {
        const size_t to = (((size_t)layer * 2 * heads + part) * text->length + row) * size;
        put_cells(text->keys_values, to, y_of(c, row) + (size_t)part * size, size, c->stack->inputs.is_exact);
    }
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
