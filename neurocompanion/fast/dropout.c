/* Which elements dropout keeps: a counter, mixed with two keys, gives two elements sixteen bits. */
#include <stdint.h>

/* the same numbers as `mixed` in the notebook on dropout */
static inline uint32_t mixed(uint32_t counter, uint32_t first, uint32_t second) {
  uint32_t z = counter ^ first;
  z = (z ^ z >> 17) * 0xed5ad4bbu;
  z = ((z ^ z >> 11) + second) * 0xac4c1b51u;
  z = (z ^ z >> 15) * 0x31848babu;
  return z ^ z >> 14;
}

/* out[n]: 1 where sixteen bits, as a signed number, reach `limit` */
void keep(long n, uint32_t first, uint32_t second, int limit, uint8_t *restrict out, int threads) {
  enum { BLOCK = 2048 };
  long pairs = n / 2;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (pairs > 8 * BLOCK)
#else
  (void)threads;
#endif
  for (long from = 0; from < pairs; from += BLOCK) {
    long to = from + BLOCK < pairs ? from + BLOCK : pairs;
    for (long i = from; i < to; i++) {
      uint32_t z = mixed((uint32_t)i, first, second);
      out[2 * i] = (int16_t)z >= limit;
      out[2 * i + 1] = (int16_t)(z >> 16) >= limit;
    }
  }
  if (n % 2) out[n - 1] = (int16_t)mixed((uint32_t)pairs, first, second) >= limit;
}
