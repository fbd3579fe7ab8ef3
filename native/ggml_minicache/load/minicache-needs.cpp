// The instruction sets that this library was compiled for, as text that is found in the file without loading it: on a processor
// that lacks one of them, loading may end the process already. python/minicache_cpp/native/processor.py reads it.
//
// The list has what a compiler uses of its own accord, with the names that llama.cpp and Linux have for them.

#if defined(_WIN32)
#define MINICACHE_KEEP __declspec(dllexport)
#else
#define MINICACHE_KEEP __attribute__((visibility("default")))
#endif

// declared first, because a constant would otherwise be private to this file, and left out of the library
extern "C" MINICACHE_KEEP const char minicache_needs[];

const char minicache_needs[] = "minicache-needs:"
// x86
#ifdef __SSE3__
                               " sse3"
#endif
#ifdef __SSSE3__
                               " ssse3"
#endif
#ifdef __SSE4_1__
                               " sse4_1"
#endif
#ifdef __SSE4_2__
                               " sse4_2"
#endif
#ifdef __POPCNT__
                               " popcnt"
#endif
#ifdef __LZCNT__
                               " lzcnt"
#endif
#ifdef __MOVBE__
                               " movbe"
#endif
#ifdef __BMI__
                               " bmi1"
#endif
#ifdef __BMI2__
                               " bmi2"
#endif
#ifdef __TBM__
                               " tbm"
#endif
#ifdef __AVX__
                               " avx"
#endif
#ifdef __XOP__
                               " xop"
#endif
#ifdef __FMA4__
                               " fma4"
#endif
// MSVC has no macros for these two; its /arch:AVX2 means them too
#if defined(__F16C__) || (defined(_MSC_VER) && defined(__AVX2__))
                               " f16c"
#endif
#if defined(__FMA__) || (defined(_MSC_VER) && defined(__AVX2__))
                               " fma"
#endif
#ifdef __AVX2__
                               " avx2"
#endif
#ifdef __AVXVNNI__
                               " avx_vnni"
#endif
#ifdef __GFNI__
                               " gfni"
#endif
#ifdef __AVX512F__
                               " avx512f"
#endif
#ifdef __AVX512CD__
                               " avx512cd"
#endif
#ifdef __AVX512VL__
                               " avx512vl"
#endif
#ifdef __AVX512DQ__
                               " avx512dq"
#endif
#ifdef __AVX512BW__
                               " avx512bw"
#endif
#ifdef __AVX512IFMA__
                               " avx512ifma"
#endif
#ifdef __AVX512VBMI__
                               " avx512vbmi"
#endif
#ifdef __AVX512VBMI2__
                               " avx512_vbmi2"
#endif
#ifdef __AVX512VNNI__
                               " avx512_vnni"
#endif
#ifdef __AVX512BITALG__
                               " avx512_bitalg"
#endif
#ifdef __AVX512VPOPCNTDQ__
                               " avx512_vpopcntdq"
#endif
#ifdef __AVX512BF16__
                               " avx512_bf16"
#endif
#ifdef __AVX512FP16__
                               " avx512_fp16"
#endif
#ifdef __AMX_TILE__
                               " amx_tile"
#endif
#ifdef __AMX_INT8__
                               " amx_int8"
#endif

// arm64
#ifdef __ARM_FEATURE_ATOMICS
                               " atomics"
#endif
#ifdef __ARM_FEATURE_CRC32
                               " crc32"
#endif
#ifdef __ARM_FEATURE_QRDMX
                               " asimdrdm"
#endif
#ifdef __ARM_FEATURE_FP16_VECTOR_ARITHMETIC
                               " asimdhp"
#endif
#ifdef __ARM_FEATURE_DOTPROD
                               " asimddp"
#endif
#ifdef __ARM_FEATURE_COMPLEX
                               " fcma"
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
                               " i8mm"
#endif
#ifdef __ARM_FEATURE_BF16
                               " bf16"
#endif
#ifdef __ARM_FEATURE_SVE
                               " sve"
#endif
#ifdef __ARM_FEATURE_SVE2
                               " sve2"
#endif
                               "\n";
