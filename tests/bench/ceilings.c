// What this machine can do at most: bytes read from memory a second, f32 operations a second, over all threads.
// gcc -O3 -march=native -fopenmp ceilings.c -o ceilings && OMP_NUM_THREADS=2 ./ceilings
// Prints {"read_gb_s": ..., "f32_gflop_s": ...}; each is the best of several runs.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 1 << 30, LANES = 8, CHAINS = 12, STEPS = 1 << 24 };
typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef unsigned long long words __attribute__((vector_size(32)));

static double read_rate(const words *data) {
    double start = omp_get_wtime();
    unsigned long long sum = 0;
#pragma omp parallel reduction(+ : sum)
    {
        words a = {0}, b = {0}, c = {0}, d = {0};
#pragma omp for schedule(static)
        for (size_t i = 0; i < BYTES / sizeof(words); i += 4) {
            a += data[i], b += data[i + 1], c += data[i + 2], d += data[i + 3];
        }
        a += b + c + d;
        sum += a[0] + a[1] + a[2] + a[3];
    }
    double seconds = omp_get_wtime() - start;
    // The sum has to be wanted, or nothing is read.
    return sum == 1 ? 0 : BYTES / seconds / 1e9;
}

static double multiply_rate(void) {
    double start = omp_get_wtime();
    float kept = 0;
#pragma omp parallel reduction(+ : kept)
    {
        vector sums[CHAINS], x, y;
        for (int i = 0; i < CHAINS; i++) memset(&sums[i], 0, sizeof sums[i]);
        for (int l = 0; l < LANES; l++) x[l] = 1.0f + l, y[l] = 1e-9f * (l + kept);
        for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) sums[i] += x * y;
            // A new value each time: the product is not constant.
            asm volatile("" : "+x"(x), "+x"(y));
        }
        for (int i = 0; i < CHAINS; i++) kept += sums[i][0];
    }
    double seconds = omp_get_wtime() - start;
    return kept == 1 ? 0 : 2.0 * LANES * CHAINS * STEPS * omp_get_max_threads() / seconds / 1e9;
}

int main(void) {
    words *data = aligned_alloc(4096, BYTES);
    if (!data) return fprintf(stderr, "not enough memory\n"), 1;
    memset(data, 0, BYTES);
    double read = 0, multiply = 0;
    for (int run = 0; run < 5; run++) {
        double r = read_rate(data), m = multiply_rate();
        if (r > read) read = r;
        if (m > multiply) multiply = m;
    }
    printf("{\"read_gb_s\": %.1f, \"f32_gflop_s\": %.1f}\n", read, multiply);
    return 0;
}
