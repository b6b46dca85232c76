/* Which x86-64 level the processor AND the operating system support.
 *
 * A module compiled for a level runs that level's instructions from its first line on, so this is
 * asked before the module is imported. CPUID says what the processor has; XGETBV says whether the
 * operating system saves the wide registers, without which they must not be touched. */
#ifndef FO_CPU_H
#define FO_CPU_H

/* 4: x86-64-v4 (AVX-512 F, BW, CD, DQ, VL); 3: x86-64-v3 (AVX2, FMA, ...); 0: the base build. */
int fo_cpu_level(void);

#endif
