/*
 * fo_cpu.h: the vendor of the processor, and the x86-64 level that both it and the operating system
 * support.
 *
 * A module compiled for a level may execute instructions of that level as soon as it is loaded, so
 * the level is checked before the import. CPUID reports the features of the processor, XGETBV
 * whether the operating system saves the wide registers.
 */
#ifndef FO_CPU_H
#define FO_CPU_H

/* Whether the processor is made by AMD, or by Hygon under its license. */
int fo_cpu_is_amd(void);

/* 4: x86-64-v4 (AVX-512 F, BW, CD, DQ, VL); 3: x86-64-v3 (AVX2, FMA, ...); 0: the base build. */
int fo_cpu_level(void);

#endif
