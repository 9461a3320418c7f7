// Keeps changing the values of all vector registers for some seconds, while other processes, a
// timer and its signal handler interrupt it. Prints whether each register kept its value.
// tests/tests/vector_registers.rs runs it in a guest.
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

enum { REGISTERS = 16, WORDS = 4 };

#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define CLEAR(n) "vpxor %%ymm" #n ",%%ymm" #n ",%%ymm" #n "\n"
#define LOAD(n) "vmovdqu " #n "*32(%0),%%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n "," #n "*32(%1)\n"

static volatile sig_atomic_t signals;

// The handler may use its own values, because the kernel has saved those of the code that it
// interrupts.
static void on_alarm(int signal) {
    (void)signal;
    signals++;
    asm volatile(EACH(CLEAR)::);
}

static int has_avx2(void) {
    unsigned a, b, c, d, xcr0, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    return (xcr0 & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

int main(int count, char **arguments) {
    time_t seconds = count > 1 ? atoi(arguments[1]) : 1;
    if (!has_avx2()) {
        puts("no AVX2");
        return 0;
    }
    signal(SIGALRM, on_alarm);
    struct itimerval every = {{0, 50000}, {0, 50000}};
    setitimer(ITIMER_REAL, &every, NULL);
    static uint64_t set[REGISTERS][WORDS], found[REGISTERS][WORDS];
    long wrong = 0, turns = 0;
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        for (int i = 0; i < 100000; i++) {
            turns++;
            for (int r = 0; r < REGISTERS; r++)
                for (int w = 0; w < WORDS; w++) set[r][w] = (uint64_t)turns * 1000 + r * 10 + w;
            asm volatile(EACH(LOAD) "mov $300,%%ecx\n1: dec %%ecx\njnz 1b\n" EACH(STORE)
                         : : "r"(set), "r"(found) : "ecx", "memory");
            wrong += memcmp(set, found, sizeof set) != 0;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - begun.tv_sec < seconds);
    printf("%s: %ld of %ld wrong, %s\n", wrong ? "mixed up" : "kept", wrong, turns, signals ? "signalled" : "never signalled");
    return wrong != 0;
}
