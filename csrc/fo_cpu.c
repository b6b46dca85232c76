/*
 * fo_cpu.c: reads CPUID and XGETBV directly, because the helpers of compilers differ and some do
 * not report x86-64 levels.
 */
#include "fo_cpu.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint32_t a, b, c, d;
} fo_registers;

#ifdef _MSC_VER
#include <intrin.h>

static fo_registers fo_cpuid(const uint32_t leaf)
{
    int r[4];
    __cpuidex(r, (int)leaf, 0);
    return (fo_registers){(uint32_t)r[0], (uint32_t)r[1], (uint32_t)r[2], (uint32_t)r[3]};
}

static uint64_t fo_xgetbv(void) { return _xgetbv(0); }
#else
#include <cpuid.h>

static fo_registers fo_cpuid(const uint32_t leaf)
{
    fo_registers r;
    __cpuid_count(leaf, 0, r.a, r.b, r.c, r.d);
    return r;
}

static uint64_t fo_xgetbv(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}
#endif

static bool fo_has_all(const uint64_t bits, const uint64_t required)
{
    return (bits & required) == required;
}

int fo_cpu_is_amd(void)
{
    const fo_registers vendor = fo_cpuid(0);
    char name[12];
    memcpy(name, &vendor.b, 4);
    memcpy(name + 4, &vendor.d, 4);
    memcpy(name + 8, &vendor.c, 4);
    return memcmp(name, "AuthenticAMD", 12) == 0 || memcmp(name, "HygonGenuine", 12) == 0;
}

int fo_cpu_level(void)
{
    const uint32_t fma = 1u << 12, movbe = 1u << 22, osxsave = 1u << 27;
    const uint32_t avx = 1u << 28, f16c = 1u << 29;
    const uint32_t bmi1 = 1u << 3, avx2 = 1u << 5, bmi2 = 1u << 8;
    /* F, DQ, CD, BW, VL */
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    const uint32_t lzcnt = 1u << 5;
    const uint64_t ymm_state = 0x06, zmm_state = 0xe6;

    if (fo_cpuid(0).a < 7 || fo_cpuid(0x80000000u).a < 0x80000001u)
        return 0;
    const fo_registers one = fo_cpuid(1), seven = fo_cpuid(7);
    if (!fo_has_all(one.c, fma | movbe | osxsave | avx | f16c))
        return 0;
    if (!fo_has_all(seven.b, bmi1 | avx2 | bmi2))
        return 0;
    if (!fo_has_all(fo_cpuid(0x80000001u).c, lzcnt))
        return 0;

    const uint64_t saved = fo_xgetbv();
    if (!fo_has_all(saved, ymm_state))
        return 0;
    return fo_has_all(seven.b, avx512) && fo_has_all(saved, zmm_state) ? 4 : 3;
}

#else

int fo_cpu_is_amd(void) { return 0; }

int fo_cpu_level(void) { return 0; }

#endif
