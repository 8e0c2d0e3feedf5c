/* The chain kernel's outs: fragments of V columns and lattice rows -> rows of tokens.
 *
 * An out's value stands on its token's last lattice row. Rows past the sequence, of padding and of
 * other slots are not stored.
 */
#include "codegen/nvptx/chain.h"

/* The rows of one out in this chunk. */
typedef struct OutRows {
    Val base;      /* element (the chunk's first token, V column 0) of this head */
    Val stride;    /* i32 bytes from token to token */
    Val left;      /* i32 tokens the chunk has */
    int bytes;     /* of an element */
} OutRows;

static OutRows out_rows(Chain *c, int port) {
    Cg *cg = c->cg;
    int bytes = elem_size(c->k->out.at[port].elem), row_bytes = c->s->V * bytes;
    Val stride = chain_keep(c, cg_mul(cg, c->heads, cg_int(cg, row_bytes)));
    Val byte = cg_mul(cg, cg_add(cg, c->seq.begin, c->start), cg_zext64(cg, stride));
    byte = cg_add(cg, byte, cg_mul(cg, cg_zext64(cg, c->head), cg_int64(cg, row_bytes)));
    Val base = cg_gep8(cg, nv_global(cg, frame_out_ptr(c->k, port)), byte);
    return (OutRows){base, stride, chain_tokens_left(c, c->start), bytes};
}

/* Pointer to element (token, v) of an out, both i32. */
static Val out_address(Cg *cg, const OutRows *out, Val token, Val v) {
    Val column = cg_gep8(cg, out->base, cg_zext64(cg, cg_mul(cg, v, cg_int(cg, out->bytes))));
    return cg_gep8(cg, column, cg_mul(cg, cg_zext64(cg, token), cg_zext64(cg, out->stride)));
}

static Val both(Cg *cg, Val a, Val b) {
    return a && b ? cg_and(cg, a, b) : a ? a : b;
}

/* Lattice row -> token, and whether an out's row is to be stored. */
static Val row_token(Chain *c, const OutRows *out, Val row, Val *live) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val token = row;
    *live = NULL;
    if (s->slots > 1) {
        token = cg_udiv(cg, row, cg_int(cg, s->slots));
        *live = cg_cmp(cg, LLVMIntEQ, cg_urem(cg, row, cg_int(cg, s->slots)),
                       cg_int(cg, s->slots - 1));
    }
    *live = both(cg, *live, cg_cmp(cg, LLVMIntSLT, token, out->left));
    return token;
}

static void store_if(Cg *cg, Val cond, Val x, Val p, int align) {
    If live = cg_if(cg, cond);
    cg_store(cg, x, p, align);
    cg_end_if(cg, &live);
}

/* Two-byte outs: each 8x8 tile turns in registers, so that a lane stores two neighbouring columns
 * of one token and four lanes 16 consecutive bytes. */
static void store_pairs(Chain *c, int port, const Val *x) {
    Cg *cg = c->cg;
    Elem e = c->k->out.at[port].elem;
    OutRows out = out_rows(c, port);
    Val two_t = cg_shl(cg, c->t, 1), warp_v = cg_add(cg, c->v_first, cg_shl(cg, c->warp, 4));
    for (int n = 0; n < c->s->rows / 8; n++) {
        Val live, token = row_token(c, &out, cg_add(cg, c->g, cg_int(cg, 8 * n)), &live);
        for (int h = 0; h < 2; h++) {
            Val turned = nv_movmatrix(cg, nv_pack(cg, e, x[4 * n + 2 * h], x[4 * n + 2 * h + 1]));
            Val v = cg_add(cg, cg_add(cg, warp_v, two_t), cg_int(cg, 8 * h)), in = NULL;
            Val p = out_address(cg, &out, token, v);
            if (c->v_live[0])
                in = cg_cmp(cg, LLVMIntSLT, v, cg_int(cg, c->s->V));
            if (c->s->V % 2 == 0) {
                store_if(cg, both(cg, live, in), turned, p, 4);
                continue;
            }
            Val next = cg_cmp(cg, LLVMIntSLT, v, cg_int(cg, c->s->V - 1));
            store_if(cg, both(cg, live, in), LLVMBuildTrunc(cg->b, turned, cg->i16, ""), p, 2);
            Val high = LLVMBuildTrunc(cg->b, cg_shr(cg, turned, 16), cg->i16, "");
            store_if(cg, both(cg, live, next), high, cg_gep8(cg, p, cg_int(cg, 2)), 2);
        }
    }
}

static void store_singles(Chain *c, int port, const Val *x) {
    Cg *cg = c->cg;
    OutRows out = out_rows(c, port);
    for (int i = 0; i < chain_fragment(c); i++) {
        int n = i / 4, h = i / 2 % 2;
        Val live, row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * n + i % 2));
        Val token = row_token(c, &out, row, &live);
        store_if(cg, both(cg, live, c->v_live[h]), x[i], out_address(cg, &out, token, c->v[h]), 4);
    }
}

/* Outs stand on their token's last lattice row. */
void chain_store_out(Chain *c, int port, int v) {
    const Val *x = chain_get(c, v);
    if (elem_size(c->k->out.at[port].elem) == 2)
        store_pairs(c, port, x);
    else
        store_singles(c, port, x);
}
