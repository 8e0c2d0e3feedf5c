/* The loops of a gradient token by token. See walk.h. */
#include "codegen/walk.h"

enum { MOST_TOKENS = 64, FEWEST_TOKENS = 16 };

int walk_segment(int64_t record_bytes, int64_t most) {
    int segment = MOST_TOKENS;
    while (segment > FEWEST_TOKENS && segment * record_bytes > most)
        segment /= 2;
    return segment;
}

/* Where segment s begins; how many tokens it has. */
static Val first_of(const Walk *w, Val s) {
    return cg_mul(w->cg, s, cg_int64(w->cg, w->segment));
}

static Val tokens_of(const Walk *w, Val first) {
    Cg *cg = w->cg;
    Val left = cg_sub(cg, w->length, first), most = cg_int64(cg, w->segment);
    return cg_select(cg, cg_cmp(cg, LLVMIntSLT, left, most), left, most);
}

static void all_forwards(const Walk *w, Val segments) {
    Cg *cg = w->cg;
    Val zero = cg_int64(cg, 0);
    Loop s = cg_for(cg, zero, segments, 1, false);
    w->start(w->user, s.i, true);
    Val first = first_of(w, s.i);
    Loop t = cg_for(cg, zero, tokens_of(w, first), 1, false);
    w->forwards(w->user, cg_add(cg, first, t.i), NULL);
    cg_end_for(cg, &t);
    cg_end_for(cg, &s);
}

static void all_backwards(const Walk *w, Val segments) {
    Cg *cg = w->cg;
    Val zero = cg_int64(cg, 0), one = cg_int64(cg, 1);
    Loop l = cg_for(cg, zero, segments, 1, false);
    Val s = cg_sub(cg, cg_sub(cg, segments, one), l.i);
    w->start(w->user, s, false);
    Val first = first_of(w, s), tokens = tokens_of(w, first);
    Loop t = cg_for(cg, zero, tokens, 1, false);
    w->forwards(w->user, cg_add(cg, first, t.i), t.i);
    cg_end_for(cg, &t);
    t = cg_for(cg, zero, tokens, 1, false);
    Val back = cg_sub(cg, cg_sub(cg, tokens, one), t.i);
    w->backwards(w->user, cg_add(cg, first, back), back);
    cg_end_for(cg, &t);
    if (w->end)
        w->end(w->user, s);
    cg_end_for(cg, &l);
}

void walk_sequence(const Walk *w) {
    Cg *cg = w->cg;
    Val most = cg_add(cg, w->length, cg_int64(cg, w->segment - 1));
    Val segments = cg_udiv(cg, most, cg_int64(cg, w->segment));
    all_forwards(w, segments);
    all_backwards(w, segments);
}
