/* The recurrent loops of LFADS, forward and back, in single precision.

   A slice of the batch walks through the whole sequence in one call, so that everything a step
   needs stays in the processor's cache; slices run on all threads. Sequences are [time, trial,
   feature]. Functions that can run out of memory return 1 if they do, else 0. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- A product: C (+)= A B for small matrices. -------------------------------------------------

   A tile of C stays in registers, 14 rows and 32 columns where they are wide (AVX-512), while the
   loop walks down the rows of B: each is loaded once for 14 multiplications. Any strides are
   allowed for A, so that its transpose needs no copy. Numbers of columns are multiples of 8:
   shorter rows end in zeros. */

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 14, VECS = 2 };
#else
enum { LANES = 8, ROWS = 6, VECS = 2 };
#endif
typedef float lane8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* rows x vecs registers of c (+)= a b; compilers keep a tile in registers if they know its size */
#define TILE(name, type, vecs)                                                                    \
  static inline __attribute__((always_inline)) void name(                                         \
      const int rows, long k, const float *a, long ar, long ac, const float *b, long bs,          \
      float *c, long cs, int add) {                                                               \
    type s[ROWS][vecs];                                                                           \
    const long w = sizeof(type) / 4;                                                              \
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++)                   \
      s[i][j] = add ? *(const type *)(c + i * cs + j * w) : (type){0};                            \
    for (long p = 0; p < k; p++, a += ac, b += bs) {                                              \
      type row[vecs];                                                                             \
      UNROLL for (int j = 0; j < vecs; j++) row[j] = *(const type *)(b + j * w);                  \
      UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++)                 \
        s[i][j] += a[i * ar] * row[j];                                                            \
    }                                                                                             \
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++)                   \
      *(type *)(c + i * cs + j * w) = s[i][j];                                                    \
  }
TILE(tile_wide, lanes, VECS)
TILE(tile_one, lanes, 1)
TILE(tile_8, lane8, 1)

/* So there is one copy of the loop for each number of rows, and rows are divided evenly: 62 become
   13 + 13 + 12 + 12 + 12, and no thin strip is left over. */
#define CASE(f, r) case r: f(r, k, a, ar, ac, b, bs, c, cs, add); break;
#ifdef __AVX512F__
#define MORE(f) CASE(f, 7) CASE(f, 8) CASE(f, 9) CASE(f, 10) CASE(f, 11) CASE(f, 12) CASE(f, 13) \
  CASE(f, 14)
#else
#define MORE(f)
#endif
#define PANEL(name, f)                                                                            \
  static void name(long m, long k, const float *a, long ar, long ac, const float *b, long bs,     \
                   float *c, long cs, int add) {                                                  \
    for (long left = (m + ROWS - 1) / ROWS, r; left; left--, m -= r, a += r * ar, c += r * cs) {  \
      r = (m + left - 1) / left;                                                                  \
      switch (r) {                                                                                \
        CASE(f, 1) CASE(f, 2) CASE(f, 3) CASE(f, 4) CASE(f, 5) CASE(f, 6) MORE(f)                 \
      }                                                                                           \
    }                                                                                             \
  }
PANEL(panel_wide, tile_wide)
PANEL(panel_one, tile_one)
PANEL(panel_8, tile_8)

static long width(long left) {   /* of the next tile */
  return left >= VECS * LANES ? VECS * LANES : left >= LANES ? LANES : 8;
}

/* c[m, n] (+)= a[m, k] b[k, n]; n is a multiple of 8. Where `total`, b is packed: panels of
   `total` rows each, and rows `from` to `from + k` of them are meant. */
static void product(long m, long n, long k, const float *a, long ar, long ac, const float *b,
                    long bs, long from, long total, float *c, long cs, int add) {
  for (long j = 0, w; j < n; j += w) {
    w = width(n - j);
    const float *at = total ? b + j * total + from * w : b + j;
    long step = total ? w : bs;
    (w == VECS * LANES ? panel_wide : w == LANES ? panel_one : panel_8)(
        m, k, a, ar, ac, at, step, c + j, cs, add);
  }
}

/* b[k, used], columns from `used` to n being zero, in panels: the order in which tiles read them */
static void pack(long k, long n, const float *b, long br, long bc, long used, float *to) {
  for (long j = 0, w; j < n; j += w) {
    w = width(n - j);
    for (long p = 0; p < k; p++) for (long q = 0; q < w; q++)
      *to++ = j + q < used ? b[p * br + (j + q) * bc] : 0;
  }
}

/* ---- Memory: one piece a call, zeroed, dealt out from its start. ------------------------------ */

static float *grab(long n) { return calloc(n > 0 ? n : 1, 4); }

static float *take(float **at, long n) {
  float *from = *at;
  *at += n;
  return from;
}

static void put(float *to, long row, const float *from, long from_row, long m, long k) {
  if (to && k) for (long i = 0; i < m; i++) memcpy(to + i * row, from + i * from_row, 4 * k);
}

static void add(float *to, long row, const float *from, long from_row, long m, long k) {
  if (from) for (long i = 0; i < m; i++) for (long j = 0; j < k; j++)
    to[i * row + j] += from[i * from_row + j];
}

/* ---- One network. ------------------------------------------------------------------------------

   Its weights are packed for both ways: W for gates from what is read, W' for the way back. The
   three gates of a trial lie in one row, each padded to kp, a multiple of 8. */

static long up(long n) { return (n + 7) / 8 * 8; }

typedef struct {          /* of one network: sizes, and its weights in panels */
  long reads, k, kp, rp, size;
  float *bias, *in, *zr, *n, *in_back, *zr_back, *n_back;
} net;

static net net_of(long reads, long k, float *at) {
  net w = {.reads = reads, .k = k, .kp = up(k), .rp = up(reads)};
  long g = 3 * w.kp;
  w.size = g + reads * g + k * 3 * w.kp + g * w.rp + 2 * w.kp * w.kp + k * w.kp;
  if (!at) return w;
  w.bias = take(&at, g);
  w.in = take(&at, reads * g);
  w.zr = take(&at, k * 2 * w.kp);
  w.n = take(&at, k * w.kp);
  w.in_back = take(&at, g * w.rp);
  w.zr_back = take(&at, 2 * w.kp * w.kp);
  w.n_back = take(&at, k * w.kp);
  return w;
}
long net_size(long reads, long k) { return net_of(reads, k, 0).size; }

/* weights [3k, reads], [3k, k], [3k] whose gates lie kp apart */
int net_pack(long reads, long k, const float *in, const float *h, const float *bias, float *to) {
  net w = net_of(reads, k, to);
  long kp = w.kp, g = 3 * kp, wide = reads > k ? reads : k;
  float *pad = grab(g * wide);
  if (!pad) return 1;
  for (long i = 0; i < 3; i++) for (long j = 0; j < kp; j++)
    w.bias[i * kp + j] = j < k ? bias[i * k + j] : 0;
  for (long i = 0; i < 3; i++) put(pad + i * kp * reads, reads, in + i * k * reads, reads, k, reads);
  pack(reads, g, pad, 1, reads, g, w.in);
  pack(g, w.rp, pad, reads, 1, reads, w.in_back);
  memset(pad, 0, 4 * g * wide);
  for (long i = 0; i < 3; i++) put(pad + i * kp * k, k, h + i * k * k, k, k, k);
  pack(k, 2 * kp, pad, 1, k, 2 * kp, w.zr);
  pack(k, kp, pad + 2 * kp * k, 1, k, kp, w.n);
  pack(2 * kp, kp, pad, k, 1, k, w.zr_back);
  pack(k, kp, pad + 2 * kp * k, k, 1, k, w.n_back);
  free(pad);
  return 0;
}

/* A polynomial of degree 6, exact to 1e-7, which compilers turn into vector instructions; what is
   not a number stays so. */
static inline float exp_(float x) {
  x = x < -87 ? -87 : x;
  x = x > 88 ? 88 : x;
  float n = rintf(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1;
  union { int i; float f; } scale = {((int)n + 127) << 23};
  return p * scale.f;
}

static inline float clamped(float x, float clip) {
  x = x > clip ? clip : x;
  return x < -clip ? -clip : x;
}

typedef struct { const float *at; long row, n; } part;   /* of what is read: stride, columns */

/* A step. What is read may come in two parts (the encoders' words and the factors; an input u and
   external inputs), which are multiplied where they lie. Gates [m, 3kp] and the state after h
   [m, k]; rh is scratch [m, kp]. */
static void forth(const net *w, long m, const part *x, int parts, const float *h, long hr,
                  float *gates, float *rh, float *out, float clip) {
  long k = w->k, kp = w->kp, g = 3 * kp, from = 0;
  for (long i = 0; i < m; i++) memcpy(gates + i * g, w->bias, 4 * g);
  for (int p = 0; p < parts; from += x[p++].n)
    product(m, g, x[p].n, x[p].at, x[p].row, 1, w->in, 0, from, w->reads, gates, g, 1);
  product(m, 2 * kp, k, h, hr, 1, w->zr, 0, 0, k, gates, g, 1);
  for (long i = 0; i < m; i++) {
    float *z = gates + i * g, *r = z + kp;
    for (long j = 0; j < 2 * kp; j++) z[j] = 1 / (1 + exp_(-z[j]));
    for (long j = 0; j < k; j++) rh[i * kp + j] = r[j] * h[i * hr + j];
  }
  product(m, kp, k, rh, kp, 1, w->n, 0, 0, k, gates + 2 * kp, g, 1);
  for (long i = 0; i < m; i++) {
    float *z = gates + i * g, *n = z + 2 * kp;
    for (long j = 0; j < kp; j++) n[j] = 1 - 2 / (1 + exp_(2 * n[j]));
    for (long j = 0; j < k; j++) {
      float y = n[j] + z[j] * (h[i * hr + j] - n[j]);
      out[i * k + j] = clip > 0 ? clamped(y, clip) : y;
    }
  }
}

/* The step back: from dh [m, kp], by the state after, to dh by the state before, and dx [m, rp] if
   asked for. `d` [m, 3kp] and rh [m, kp] are scratch. The weights' gradients grow where they lie:
   grad [reads + k + 1, 3kp], rows for what was read, for the state, and for the bias. */
static void back(const net *w, long m, const part *x, int parts, const float *h, long hr,
                 const float *gates, float *d, float *rh, float *dh, float *dx, float *grad) {
  long k = w->k, kp = w->kp, g = 3 * kp, rp = w->rp, from = 0;
  float *grad_h = grad + w->reads * g, *grad_bias = grad_h + k * g;
  for (long i = 0; i < m; i++) {
    const float *restrict z = gates + i * g, *restrict r = z + kp, *restrict n = r + kp,
                *restrict hi = h + i * hr;
    float *restrict dz = d + i * g, *restrict dn = dz + 2 * kp, *restrict e = dh + i * kp,
          *restrict q = rh + i * kp;
    for (long j = 0; j < k; j++) {
      float one = 1 - z[j], by = e[j];
      dn[j] = by * one * (1 - n[j] * n[j]);
      dz[j] = by * (hi[j] - n[j]) * z[j] * one;
      e[j] = by * z[j];
      q[j] = r[j] * hi[j];
    }
  }
  float *drh = d + kp;     /* where dr belongs */
  product(m, kp, k, d + 2 * kp, g, 1, w->n_back, 0, 0, k, drh, g, 0);
  for (long i = 0; i < m; i++) {
    const float *r = gates + i * g + kp, *hi = h + i * hr;
    float *dr = drh + i * g, *e = dh + i * kp;
    for (long j = 0; j < k; j++) {
      float by = dr[j];
      e[j] += by * r[j];
      dr[j] = by * hi[j] * r[j] * (1 - r[j]);
    }
  }
  product(m, kp, 2 * kp, d, g, 1, w->zr_back, 0, 0, 2 * kp, dh, kp, 1);
  if (dx) product(m, rp, g, d, g, 1, w->in_back, 0, 0, g, dx, rp, 0);
  for (int p = 0; p < parts; from += x[p++].n)
    product(x[p].n, g, m, x[p].at, 1, x[p].row, d, g, 0, 0, grad + from * g, g, 1);
  product(k, 2 * kp, m, h, 1, hr, d, g, 0, 0, grad_h, g, 1);
  product(k, kp, m, rh, 1, kp, d + 2 * kp, g, 0, 0, grad_h + 2 * kp, g, 1);
  for (long i = 0; i < m; i++) for (long j = 0; j < g; j++) grad_bias[j] += d[i * g + j];
}

/* the gradient before the first step's clamp */
static void unclamped(float *d, long row, const float *after, long m, long k, float clip) {
  for (long i = 0; i < m; i++) for (long j = 0; j < k; j++)
    if (fabsf(after[i * k + j]) >= clip) d[i * row + j] = 0;
}

/* ---- Reading a sequence: an encoder, or a generator without a controller. --------------------- */

typedef struct {   /* a slice of m trials of b; strides of x, d_out and d_x: time, trial */
  long steps, b, m, reads, k, backwards, x_t, x_b, d_t, d_b, dx_t, dx_b;
  double clip;
  float *net, *x, *h0, *out, *gates, *d_out, *d_h, *d_x, *grad;
} reading;

static int read_forth(const reading *a) {
  net w = net_of(a->reads, a->k, a->net);
  long m = a->m, g = 3 * w.kp;
  float *memory = grab(m * w.kp + (a->gates ? 0 : m * g)), *at = memory;
  if (!memory) return 1;
  float *rh = take(&at, m * w.kp);
  const float *h = a->h0;
  for (long i = 0; i < a->steps; i++) {
    long t = a->backwards ? a->steps - 1 - i : i;
    part x = {a->x + t * a->x_t, a->x_b, a->reads};
    float *out = a->out + t * a->b * a->k, *gates = a->gates ? a->gates + t * m * g : at;
    forth(&w, m, &x, 1, h, a->k, gates, rh, out, i ? 0 : a->clip);
    h = out;
  }
  free(memory);
  return 0;
}

/* A state's gradient is what the loss asks of it and what comes from the step after it. `d_h` is
   that by the last state on the way in, and by the first on the way out. */
static int read_back(const reading *a) {
  net w = net_of(a->reads, a->k, a->net);
  long m = a->m, k = a->k, kp = w.kp, g = 3 * kp;
  float *memory = grab(m * (kp + g + kp + w.rp)), *at = memory;
  if (!memory) return 1;
  float *rh = take(&at, m * kp), *d = take(&at, m * g), *dh = take(&at, m * kp),
        *dx = a->d_x ? at : 0;
  put(dh, kp, a->d_h, k, m, k);
  for (long i = a->steps - 1; i >= 0; i--) {
    long t = a->backwards ? a->steps - 1 - i : i, before = a->backwards ? t + 1 : t - 1;
    part x = {a->x + t * a->x_t, a->x_b, a->reads};
    if (a->d_out) add(dh, kp, a->d_out + t * a->d_t, a->d_b, m, k);
    if (!i) unclamped(dh, kp, a->out + t * a->b * k, m, k, a->clip);
    back(&w, m, &x, 1, i ? a->out + before * a->b * k : a->h0, k, a->gates + t * m * g, d, rh,
         dh, dx, a->grad);
    if (dx) put(a->d_x + t * a->dx_t, a->dx_b, dx, w.rp, m, a->reads);
  }
  put(a->d_h, k, dh, kp, m, k);
  free(memory);
  return 0;
}

/* ---- Controller and generator in turn. ---------------------------------------------------------

   Two small layers are between them: from the controller to the moments of u, and from the
   generator to factors. */

typedef struct { long n, k, np, kp, size; float *bias, *forth, *back; } layer;

static layer layer_of(long n, long k, float *at) {
  layer w = {.n = n, .k = k, .np = up(n), .kp = up(k)};
  w.size = w.np + k * w.np + n * w.kp;
  if (!at) return w;
  w.bias = take(&at, w.np);
  w.forth = take(&at, k * w.np);
  w.back = take(&at, n * w.kp);
  return w;
}
long layer_size(long n, long k) { return layer_of(n, k, 0).size; }

int layer_pack(long n, long k, const float *weight, const float *bias, float *to) {
  layer w = layer_of(n, k, to);
  for (long j = 0; j < w.np; j++) w.bias[j] = bias && j < n ? bias[j] : 0;
  pack(k, w.np, weight, 1, k, n, w.forth);
  pack(n, w.kp, weight, k, 1, k, w.back);
  return 0;
}

static void apply(const layer *w, long m, const float *x, long row, float *y) {   /* y [m, np] */
  for (long i = 0; i < m; i++) memcpy(y + i * w->np, w->bias, 4 * w->np);
  product(m, w->np, w->k, x, row, 1, w->forth, 0, 0, w->k, y, w->np, 1);
}

typedef unsigned char byte;

typedef struct {   /* a slice of m trials of b */
  long steps, b, m, ci_n, u, ext_n, c_n, g_n, f_n;
  double clip, scale;                    /* what is kept is multiplied by `scale` */
  byte *keep_ci, *keep_f, *keep_g;       /* dropout: one byte a value */
  float *con, *gen, *out, *fac, *ci, *ext, *c0, *g0, *f0, *noise,
        *cs, *moments, *us, *gs, *fs, *by_c, *by_g,
        *d_cs, *d_moments, *d_us, *d_gs, *d_fs, *d_ci, *d_ext, *d_c, *d_g, *d_f,
        *grad_con, *grad_gen, *grad_out, *grad_fac;
} chained;

static const byte *kept(const byte *keep, long at) { return keep ? keep + at : 0; }

/* what of x is kept: all of it without `keep` */
static void dropped(float *to, long row, const float *x, long x_row, const byte *keep, long m,
                    long k, float scale) {
  if (!keep) put(to, row, x, x_row, m, k);
  else for (long i = 0; i < m; i++) for (long j = 0; j < k; j++)
    to[i * row + j] = keep[i * k + j] ? x[i * x_row + j] * scale : 0;
}

/* The loop forward, line for line that of `chain_plain` in the notebook on recurrent loops. */
static int chain_forth(const chained *a) {
  long m = a->m, b = a->b, u = a->u, fn = a->f_n, cn = a->c_n, gn = a->g_n, cin = a->ci_n,
       en = a->ext_n;
  net con = net_of(cin + fn, cn, a->con), gen = net_of(u + en, gn, a->gen);
  layer out = layer_of(2 * u, cn, a->out), fac = layer_of(fn, gn, a->fac);
  long c3 = 3 * con.kp, g3 = 3 * gen.kp, wide = con.kp > gen.kp ? con.kp : gen.kp;
  float *memory = grab(m * (wide + fn + gn + cin + out.np + fac.np + (a->by_c ? 0 : c3 + g3))),
        *at = memory;
  if (!memory) return 1;
  float *rh = take(&at, m * wide), *f_in = take(&at, m * fn), *g_out = take(&at, m * gn),
        *ci_in = take(&at, m * cin), *y = take(&at, m * (out.np + fac.np));
  const float *c = a->c0, *g = a->g0, *f = a->f0;
  for (long t = 0; t < a->steps; t++) {
    long i0 = t * b;
    float *ct = a->cs + i0 * cn, *gt = a->gs + i0 * gn, *ft = a->fs + i0 * fn,
          *ut = a->us + i0 * u, *moments = a->moments + i0 * 2 * u, clip = t ? 0 : a->clip;
    dropped(ci_in, cin, a->ci + i0 * cin, cin, kept(a->keep_ci, i0 * cin), m, cin, a->scale);
    dropped(f_in, fn, f, fn, kept(a->keep_f, i0 * fn), m, fn, a->scale);
    part x[2] = {{ci_in, cin, cin}, {f_in, fn, fn}};
    forth(&con, m, x, 2, c, cn, a->by_c ? a->by_c + t * m * c3 : at, rh, ct, clip);
    apply(&out, m, ct, cn, y);
    put(moments, 2 * u, y, out.np, m, 2 * u);
    const float *e = a->noise ? a->noise + i0 * u : 0;
    for (long i = 0; i < m; i++) for (long j = 0; j < u; j++)
      ut[i * u + j] = y[i * out.np + j] + (e ? exp_(y[i * out.np + u + j] / 2) * e[i * u + j] : 0);
    part v[2] = {{ut, u, u}, {a->ext + i0 * en, en, en}};
    forth(&gen, m, v, 2, g, gn, a->by_g ? a->by_g + t * m * g3 : at + m * c3, rh, gt, clip);
    dropped(g_out, gn, gt, gn, kept(a->keep_g, i0 * gn), m, gn, a->scale);
    apply(&fac, m, g_out, gn, y);
    put(ft, fn, y, fac.np, m, fn);
    c = ct, g = gt, f = ft;
  }
  free(memory);
  return 0;
}

/* And back, from the last step to the first: from the factors to the generator, from there to its
   input u and the moments of it, to the controller, and to the factors of the step before. `d_c`,
   `d_g` and `d_f` are the gradients by what came before the first step. */
static int chain_back(const chained *a) {
  long m = a->m, b = a->b, u = a->u, fn = a->f_n, cn = a->c_n, gn = a->g_n, cin = a->ci_n,
       en = a->ext_n;
  net con = net_of(cin + fn, cn, a->con), gen = net_of(u + en, gn, a->gen);
  layer out = layer_of(2 * u, cn, a->out), fac = layer_of(fn, gn, a->fac);
  long c3 = 3 * con.kp, g3 = 3 * gen.kp, wide = con.kp > gen.kp ? con.kp : gen.kp,
       reads = con.rp > gen.rp ? con.rp : gen.rp;
  float *memory = grab(m * (2 * wide + c3 + g3 + con.kp + gen.kp + fac.np + out.np + reads + fn
                            + gn + cin)), *at = memory;
  if (!memory) return 1;
  float *rh = take(&at, m * wide), *d_con = take(&at, m * c3), *d_gen = take(&at, m * g3),
        *dc = take(&at, m * con.kp), *dg = take(&at, m * gen.kp), *df = take(&at, m * fac.np),
        *dm = take(&at, m * out.np), *into = take(&at, m * wide), *dx = take(&at, m * reads),
        *f_in = take(&at, m * fn), *g_out = take(&at, m * gn), *ci_in = take(&at, m * cin);
  for (long t = a->steps - 1; t >= 0; t--) {
    long i0 = t * b, before = i0 - b;
    const float *ct = a->cs + i0 * cn, *gt = a->gs + i0 * gn;
    const byte *keep_ci = kept(a->keep_ci, i0 * cin), *keep_f = kept(a->keep_f, i0 * fn),
               *keep_g = kept(a->keep_g, i0 * gn);
    /* factors */
    if (a->d_fs) add(df, fac.np, a->d_fs + i0 * fn, fn, m, fn);
    dropped(g_out, gn, gt, gn, keep_g, m, gn, a->scale);
    product(gn, fac.np, m, g_out, 1, gn, df, fac.np, 0, 0, a->grad_fac, fac.np, 1);
    product(m, gen.kp, fn, df, fac.np, 1, fac.back, 0, 0, fn, into, gen.kp, 0);
    dropped(g_out, gn, into, gen.kp, keep_g, m, gn, a->scale);
    add(dg, gen.kp, g_out, gn, m, gn);
    /* generator */
    if (a->d_gs) add(dg, gen.kp, a->d_gs + i0 * gn, gn, m, gn);
    if (!t) unclamped(dg, gen.kp, gt, m, gn, a->clip);
    part v[2] = {{a->us + i0 * u, u, u}, {a->ext + i0 * en, en, en}};
    back(&gen, m, v, 2, t ? a->gs + before * gn : a->g0, gn, a->by_g + t * m * g3, d_gen, rh, dg,
         dx, a->grad_gen);
    if (en) put(a->d_ext + i0 * en, en, dx + u, gen.rp, m, en);
    /* u and its moments */
    if (a->d_us) add(dx, gen.rp, a->d_us + i0 * u, u, m, u);
    for (long i = 0; i < m; i++) for (long j = 0; j < u; j++) {
      const float *moments = a->moments + (i0 + i) * 2 * u,
                  *d = a->d_moments ? a->d_moments + (i0 + i) * 2 * u : 0;
      float du = dx[i * gen.rp + j];
      dm[i * out.np + j] = du + (d ? d[j] : 0);
      dm[i * out.np + u + j] = (d ? d[u + j] : 0) + (a->noise ?
        du * exp_(moments[u + j] / 2) * a->noise[(i0 + i) * u + j] / 2 : 0);
    }
    product(cn, out.np, m, ct, 1, cn, dm, out.np, 0, 0, a->grad_out, out.np, 1);
    add(a->grad_out + cn * out.np, 0, dm, out.np, m, out.np);
    product(m, con.kp, 2 * u, dm, out.np, 1, out.back, 0, 0, 2 * u, dc, con.kp, 1);
    /* controller */
    if (a->d_cs) add(dc, con.kp, a->d_cs + i0 * cn, cn, m, cn);
    if (!t) unclamped(dc, con.kp, ct, m, cn, a->clip);
    dropped(ci_in, cin, a->ci + i0 * cin, cin, keep_ci, m, cin, a->scale);
    dropped(f_in, fn, t ? a->fs + before * fn : a->f0, fn, keep_f, m, fn, a->scale);
    part x[2] = {{ci_in, cin, cin}, {f_in, fn, fn}};
    back(&con, m, x, 2, t ? a->cs + before * cn : a->c0, cn, a->by_c + t * m * c3, d_con, rh, dc,
         dx, a->grad_con);
    dropped(a->d_ci + i0 * cin, cin, dx, con.rp, keep_ci, m, cin, a->scale);
    dropped(df, fac.np, dx + cin, con.rp, keep_f, m, fn, a->scale);
  }
  put(a->d_c, cn, dc, con.kp, m, cn);
  put(a->d_g, gn, dg, gen.kp, m, gn);
  put(a->d_f, fn, df, fac.np, m, fn);
  free(memory);
  return 0;
}

/* ---- Slices. -----------------------------------------------------------------------------------

   They are independent of each other, and are given out to threads one at a time. Their gradients
   are added up in the order of slices, not of threads: any number of threads gives the same. */

#ifdef _OPENMP
#define THREADS _Pragma("omp parallel for schedule(dynamic) num_threads(threads) reduction(|:failed)")
#else
#define THREADS
#endif
#define EACH(f, type)                                     \
  int f##_all(const type *slices, long n, int threads) {  \
    int failed = 0;                                       \
    (void)threads;                                        \
    THREADS for (long i = 0; i < n; i++) failed |= f(slices + i); \
    return failed;                                        \
  }
EACH(read_forth, reading)
EACH(read_back, reading)
EACH(chain_forth, chained)
EACH(chain_back, chained)
