/* All that differs between instruction sets. Everything else is written once, in clang's vector extensions, so that
 * every build computes the same numbers, bit for bit.
 *
 * The compiler is told which build this is by -DBUILD=AVX2 and so on (builds.py lists them). Only what lies between
 * the two pragmas, here and in library.c, may use the build's instructions: `is_supported` must run anywhere.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#define X86_64_V2 1
#define AVX2 2
#define AVXVNNI 3
#define AVX512VNNI 4
#define AARCH64 5
#define DOTPROD 6

#if BUILD < X86_64_V2 || BUILD > DOTPROD
#error "name a build of builds.py: -DBUILD=AVX2"
#elif BUILD == X86_64_V2
#define FEATURES "ssse3,sse4.1"
#elif BUILD == AVX2
#define FEATURES "avx2,fma,f16c"
#elif BUILD == AVXVNNI
#define FEATURES "avx2,fma,f16c,avxvnni"
#elif BUILD == AVX512VNNI
#define FEATURES "avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,avx512dq,avx2,fma,f16c"
#elif BUILD == AARCH64
#define FEATURES "neon"
#else
#define FEATURES "neon,dotprod"
#endif

#define DO_PRAGMA(text) _Pragma(#text)
#define BEGIN_TARGET_OF(features)                                                                                      \
    DO_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BEGIN_TARGET BEGIN_TARGET_OF(FEATURES)
#define END_TARGET _Pragma("clang attribute pop")

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define LANES 16
#define INLINED __attribute__((always_inline)) static inline /* so that a constant argument is one inside, too */

typedef float Floats __attribute__((ext_vector_type(LANES)));
typedef int32_t Ints __attribute__((ext_vector_type(LANES)));
typedef uint16_t Halves __attribute__((ext_vector_type(LANES)));
typedef int8_t SignedBytes __attribute__((ext_vector_type(LANES)));

#if BUILD <= AVX512VNNI
#include <cpuid.h>
#include <immintrin.h>

/* Bits are those of Intel's manual, CPUID: that the processor has the instructions, and the system their registers. */
EXPORT int is_supported(void) {
    const unsigned ssse3 = 1u << 9, fma = 1u << 12, sse4_1 = 1u << 19, os_saves = 1u << 27, f16c = 1u << 29;
    const unsigned avx2 = 1u << 5, f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    const unsigned avx512_vnni = 1u << 11, avx_vnni = 1u << 4, ymm = 0x6, zmm = 0xE6;
    unsigned a, b, c, d, enabled, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & ssse3) || !(c & sse4_1)) return 0;
    if (BUILD == X86_64_V2) return 1;
    if (!(c & fma) || !(c & os_saves) || !(c & f16c)) return 0;
    __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    if ((enabled & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx2)) return 0;
    if (BUILD == AVX512VNNI) return (enabled & zmm) == zmm && (b & f_dq_cd_bw_vl) == f_dq_cd_bw_vl && (c & avx512_vnni);
    if (BUILD == AVXVNNI) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx_vnni);
    return 1;
}
#else
#include <arm_neon.h>
#if defined(__APPLE__)
#include <stddef.h>
int sysctlbyname(const char *, void *, size_t *, void *, size_t);
#else
#include <sys/auxv.h>
#endif

EXPORT int is_supported(void) {
    if (BUILD == AARCH64) return 1;
#if defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, 0, 0) && has;
#else
    return (getauxval(AT_HWCAP) >> 20) & 1; /* HWCAP_ASIMDDP */
#endif
}
#endif

BEGIN_TARGET

/* The processor waits for another one. */
INLINED void pause_briefly(void) {
#if BUILD <= AVX512VNNI
    _mm_pause();
#else
    __asm__ volatile("isb"); /* `yield` takes no time on most of them */
#endif
}

/* A register holds int32 sums, or as many times four weights. `dot4` adds weight · x to each sum for the four bytes of
 * `x`, exactly: both are within ±127. Where weights have to be unsigned they are raised by RAISED, and with them every
 * sum by RAISED · Σx. ROWS is for how many rows a tile is multiplied at a time, and MIXED of how many vectors of values
 * a sum is made: they stay in registers.
 */
#if BUILD == AVX512VNNI
#define RAISED 128
#define ROWS 8
#define MIXED 8
typedef __m512i Register, Weights;
INLINED Weights load_weights(const int8_t *from) {
    return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(-RAISED));
}
INLINED Register dot4(Register sums, Weights w, int32_t x) {
    return _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(x));
}

#elif BUILD == AVXVNNI
#define RAISED 128
#define ROWS 4
#define MIXED 4
typedef __m256i Register, Weights;
INLINED Weights load_weights(const int8_t *from) {
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)from), _mm256_set1_epi8(-RAISED));
}
INLINED Register dot4(Register sums, Weights w, int32_t x) {
    return _mm256_dpbusd_avx_epi32(sums, w, _mm256_set1_epi32(x));
}

#elif BUILD == AVX2 /* |w| · (x with w's sign): two such products fit in an int16 */
#define RAISED 0
#define ROWS 4
#define MIXED 4
typedef __m256i Register;
typedef struct {
    Register signs, sizes;
} Weights;
INLINED Weights load_weights(const int8_t *from) {
    const Register w = _mm256_loadu_si256((const __m256i *)from);
    return (Weights){w, _mm256_abs_epi8(w)};
}
INLINED Register dot4(Register sums, Weights w, int32_t x) {
    const Register pairs = _mm256_maddubs_epi16(w.sizes, _mm256_sign_epi8(_mm256_set1_epi32(x), w.signs));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#elif BUILD == X86_64_V2 /* the same in half a register */
#define RAISED 0
#define ROWS 2
#define MIXED 4
typedef __m128i Register;
typedef struct {
    Register signs, sizes;
} Weights;
INLINED Weights load_weights(const int8_t *from) {
    const Register w = _mm_loadu_si128((const __m128i *)from);
    return (Weights){w, _mm_abs_epi8(w)};
}
INLINED Register dot4(Register sums, Weights w, int32_t x) {
    const Register pairs = _mm_maddubs_epi16(w.sizes, _mm_sign_epi8(_mm_set1_epi32(x), w.signs));
    return _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
}

#else
#define RAISED 0
#define ROWS 4
#define MIXED 4
typedef int32x4_t Register;
typedef int8x16_t Weights;
INLINED Weights load_weights(const int8_t *from) { return vld1q_s8(from); }
INLINED Register dot4(Register sums, Weights w, int32_t x) {
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(x));
#if BUILD == DOTPROD
    return vdotq_s32(sums, w, four);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(four)), high = vmull_high_s8(w, four);
    return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
#endif

/* The same for convolutions, whose inputs are unsigned: four bytes of `x` with those of each lane of `w`. Exact too,
 * because of two neighbours' weights the magnitudes add up to 128 at most: their products then fit in an int16
 * (255 · 128 < 2¹⁵). Where instructions take signed inputs only, they are lowered by LOWERED, and with them every sum
 * by LOWERED · Σw.
 */
/* The sums of so many pixels and tiles stay in registers. */
#if BUILD == AVX512VNNI
#define EXACT_PIXELS 8
#define INT8_PIXELS 8
#define TILES 2
#elif BUILD == AVX2
#define EXACT_PIXELS 6
#define INT8_PIXELS 4
#define TILES 1
#elif BUILD == X86_64_V2
#define EXACT_PIXELS 2
#define INT8_PIXELS 2
#define TILES 1
#else
#define EXACT_PIXELS 6
#define INT8_PIXELS 6
#define TILES 1
#endif
#define MOST_PIXELS (EXACT_PIXELS > INT8_PIXELS ? EXACT_PIXELS : INT8_PIXELS)

#if BUILD > AVX512VNNI
#define LOWERED 128
#else
#define LOWERED 0
#endif

typedef union {
    Ints ints;
#if BUILD <= AVX512VNNI
    __m512i whole;
    __m256i halves[2];
    __m128i quarters[4];
#else
    int8x16_t bytes[4];
    int32x4_t quarters[4];
#endif
} Quads;

INLINED Ints add_quad(Ints sum, uint32_t x, Ints w) {
    Quads sums = {sum}, weights = {w};
#if BUILD == AVX512VNNI
    sums.whole = _mm512_dpbusd_epi32(sums.whole, _mm512_set1_epi32((int)x), weights.whole);
#elif BUILD == AVXVNNI
    const __m256i bytes = _mm256_set1_epi32((int)x);
    for (int i = 0; i < 2; i++) sums.halves[i] = _mm256_dpbusd_avx_epi32(sums.halves[i], bytes, weights.halves[i]);
#elif BUILD == AVX2
    const __m256i bytes = _mm256_set1_epi32((int)x), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++) {
        const __m256i pairs = _mm256_maddubs_epi16(bytes, weights.halves[i]);
        sums.halves[i] = _mm256_add_epi32(sums.halves[i], _mm256_madd_epi16(pairs, ones));
    }
#elif BUILD == X86_64_V2
    const __m128i bytes = _mm_set1_epi32((int)x), ones = _mm_set1_epi16(1);
    for (int i = 0; i < 4; i++) {
        const __m128i pairs = _mm_maddubs_epi16(bytes, weights.quarters[i]);
        sums.quarters[i] = _mm_add_epi32(sums.quarters[i], _mm_madd_epi16(pairs, ones));
    }
#elif BUILD == DOTPROD
    const int8x16_t bytes = vreinterpretq_s8_u32(vdupq_n_u32(x ^ 0x80808080));
    for (int i = 0; i < 4; i++) sums.quarters[i] = vdotq_s32(sums.quarters[i], weights.bytes[i], bytes);
#else
    const int8x16_t bytes = vreinterpretq_s8_u32(vdupq_n_u32(x ^ 0x80808080));
    for (int i = 0; i < 4; i++) {
        const int16x8_t low = vmull_s8(vget_low_s8(weights.bytes[i]), vget_low_s8(bytes));
        const int16x8_t high = vmull_high_s8(weights.bytes[i], bytes);
        sums.quarters[i] = vaddq_s32(sums.quarters[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    }
#endif
    return sums.ints;
}

#if BUILD == X86_64_V2
typedef double Doubles __attribute__((ext_vector_type(LANES)));
typedef int64_t Longs __attribute__((ext_vector_type(LANES)));
typedef uint32_t Words __attribute__((ext_vector_type(LANES)));

/* a · b + c, rounded once. In double the product is exact; the sum is rounded to odd (where it is not exact, its last
 * bit is one), so that rounding it once more, to float, gives what rounding the exact sum would.
 */
INLINED Floats fused(Floats a, Floats b, Floats c) {
    const Doubles product = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);
    const Doubles addend = __builtin_convertvector(c, Doubles), sum = product + addend, back = sum - product;
    const Doubles error = (product - (sum - back)) + (addend - back);
    const Longs bits = (Longs)sum, is_even = (bits & 1) - 1, is_rounded = (Longs)((error < 0) | (error > 0));
    const Longs one = ((bits ^ (Longs)error) >> 63) | 1; /* away from zero if the error has the sum's sign */
    return __builtin_convertvector((Doubles)(bits + (is_rounded & is_even & one)), Floats);
}

/* A half's exponent and fraction, moved to their places in a float, are the number times 2^−112. */
INLINED Floats from_halves(Halves x) {
    const Words bits = __builtin_convertvector(x, Words), size = bits & 0x7FFF;
    const Floats value = (Floats)(size << 13) * 0x1p112f;
    const Words special = (Words)(size >= 0x7C00) & 0x7F800000; /* infinity and NaN */
    return (Floats)((Words)value | special | (bits & 0x8000) << 16);
}
#else
INLINED Floats fused(Floats a, Floats b, Floats c) { return __builtin_elementwise_fma(a, b, c); }
INLINED Floats from_halves(Halves x) {
    typedef _Float16 Float16s __attribute__((ext_vector_type(LANES)));
    return __builtin_convertvector((Float16s)x, Floats);
}
#endif

END_TARGET
