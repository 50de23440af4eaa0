/* What Python calls. Compiled once for each build of builds.py, each a library of its own; target.h has `is_supported`,
 * which alone may be called where the build's instructions may be missing.
 */
#include "decode_step.h"
#include "draw.h"
#include "encode_text.h"
#include "operations.h"

/* One layer's phases, and those around the layers: no fewer than are gone through in run_step and in run_text. */
static int num_phases(int layers, int cross_layers) { return layers * 14 + 2 * cross_layers + 4; }

EXPORT int phase_bytes(int layers, int cross_layers) { return num_phases(layers, cross_layers) * (int)sizeof(Phase); }

EXPORT int operation_phase_bytes(int operations) { return operations * (int)sizeof(Phase); }

/* What the inputs of int8 convolutions are lowered by: target.h. */
EXPORT int lowered(void) { return LOWERED; }

/* Of `heads` heads' keys and values. */
EXPORT int64_t cache_bytes(int heads, int positions, int head_size, int cell) {
    return (int64_t)heads * head_bytes(positions, head_size, cell);
}

EXPORT int max_positions(void) { return MAX_POSITIONS; }

/* Lets Python see that its structures are these, and the library that of the sources beside it. */
EXPORT int layout(void) {
    return sizeof(Layer) + sizeof(Decoder) + sizeof(Step) + sizeof(Encoder) + sizeof(Text) + sizeof(Convolution) +
           sizeof(Moments) + sizeof(Norm) + sizeof(Framing) + sizeof(Packing) + sizeof(Softmax) + sizeof(Program);
}
EXPORT const char *sources(void) { return SOURCES; }

BEGIN_TARGET

EXPORT void decode_step(const Step *step) { run_step(step); }

EXPORT void encode_text(const Text *text) { run_text(text); }

EXPORT void run_operations(const Program *program) { run_program(program); }

EXPORT int convolution_chunks(const Convolution *c) { return chunks_of(c); }

EXPORT int draw(const float *logits, const int64_t *ids, int count, uint64_t seed, uint32_t image_index,
                uint32_t step) {
    return best_of(logits, ids, count, (NoiseKey){seed, image_index, step});
}

END_TARGET
