/* What a well-formed kernel is. Passes and code generators rely on exactly this.
 *
 *   all levels   every axis that is used has a size; ports have distinct names; operands stand
 *                before their use; operations are legal at the level; shapes are the inferred ones,
 *                over C, R, U, K, V; every output is given once
 *   chunk, tile  R = U = C * slots; a weave has one operand per slot; a place counts the updates of
 *                one token; the state read implies one next state
 *   tile         roles, below; at other levels no role, keep or element type
 *
 * Roles. `factor` values never depend on the state nor on chain values. Values without a role are
 * recomputed where they are needed, so they must be cheap (value_is_cheap). What the chain takes
 * from the factor role is kept, or cheap and made of such values. */
#include "ir/ir.h"

#include <string.h>

typedef struct Verifier {
    const Kernel *k;
    const char *why;
} Verifier;

/* Remembers the first complaint; false always, so that checks read `ok || say(...)`. */
static bool __attribute__((format(printf, 2, 3))) say(Verifier *f, const char *fmt, ...) {
    if (f->why)
        return false;
    Buf b;
    va_list ap;
    buf_init(&b, f->k->arena);
    va_start(ap, fmt);
    buf_vprintf(&b, fmt, ap);
    va_end(ap);
    f->why = b.text;
    return false;
}

static bool complain(Verifier *f, int v, const char *what) {
    Op op = inst_at(f->k, v)->op;
    return say(f, "%%%d %s: %s", v, (unsigned)op < OP_count ? op_info[op].name : "?", what);
}

bool value_is_cheap(const Inst *in) {
    OpClass c = op_info[in->op].class;
    return in->op == OP_weave || in->op == OP_rename ||
           (c != CLASS_CHUNK && c != CLASS_STATE);
}

/* ports and axes ------------------------------------------------------------------------------- */

static bool check_shape(Verifier *f, Shape s, int lowest, const char *what) {
    if (s.rank < 0 || s.rank > 3)
        return say(f, "%s: a shape has at most 3 axes", what);
    for (int i = 0; i < s.rank; i++) {
        if (s.axis[i] < lowest || s.axis[i] >= f->k->axis.count)
            return say(f, "%s: an axis that does not belong here", what);
        if (f->k->axis.at[s.axis[i]].size < 1)
            return say(f, "%s: axis %s has no size", what, f->k->axis.at[s.axis[i]].name);
        for (int j = 0; j < i; j++)
            if (s.axis[j] == s.axis[i])
                return say(f, "%s: an axis twice", what);
    }
    return true;
}

static bool check_ports(Verifier *f, const Port *p, int n) {
    for (int i = 0; i < n; i++) {
        if (!check_shape(f, p[i].shape, AXIS_K, p[i].name))
            return false;
        if (p[i].is_param && p[i].elem != ELEM_f32)
            return say(f, "%s: params are f32", p[i].name);
        for (int j = 0; j < i; j++)
            if (strcmp(p[i].name, p[j].name) == 0)
                return say(f, "%s: declared twice", p[i].name);
    }
    return true;
}

static int slots_of(const Kernel *k) {
    return k->axis.at[AXIS_R].size / k->axis.at[AXIS_C].size;
}

static bool check_lattice(Verifier *f) {
    const Kernel *k = f->k;
    int c = k->axis.at[AXIS_C].size, r = k->axis.at[AXIS_R].size, u = k->axis.at[AXIS_U].size;
    if (c < 1 || r < 0 || r % c || r != u)
        return say(f, "axes C = %d, R = %d, U = %d: not C, C*slots, C*slots", c, r, u);
    if (k->facts.known && k->facts.slots * (int64_t)c != r)
        return say(f, "axis R = %d is not C = %d by slots = %d", r, c, k->facts.slots);
    return true;
}

/* instructions --------------------------------------------------------------------------------- */

static bool check_chunk_fields(Verifier *f, int v) {
    const Kernel *k = f->k;
    const Inst *in = inst_at(k, v);
    if (in->op == OP_weave && in->nargs != slots_of(k))
        return complain(f, v, "one operand per update of a token");
    if (in->op == OP_scores || in->op == OP_carry) {
        bool on_rows = shape_has(in->shape, AXIS_R);
        if (in->place < 0 || in->place > (on_rows ? 0 : slots_of(k)))
            return complain(f, v, "a place that is not there");
    }
    return true;
}

static bool check_inst(Verifier *f, int v) {
    const Kernel *k = f->k;
    const Inst *in = inst_at(k, v);
    for (int i = 0; i < in->nargs; i++)
        if (in->arg[i] >= v)
            return complain(f, v, "an operand that stands later");
    Shape s;
    const char *why = inst_shape(k, in, &s);
    if (why)
        return complain(f, v, why);
    if (!shape_equal(s, in->shape)) {
        Buf b;
        buf_init(&b, k->arena);
        shape_print(k, s, &b);
        return say(f, "%%%d %s: its shape is %s", v, op_info[in->op].name, b.text);
    }
    for (int i = 0; i < s.rank; i++)
        if (s.axis[i] >= AXIS_user)
            return complain(f, v, "values have no other axes than C, R, U, K, V");
    if (!check_shape(f, s, AXIS_C, op_info[in->op].name))
        return false;
    if (k->level != LEVEL_tile && (in->role || in->keep || in->elem))
        return complain(f, v, "role, keep and element type belong to the tile level");
    return k->level == LEVEL_recurrence || check_chunk_fields(f, v);
}

static bool check_effects(Verifier *f) {
    const Kernel *k = f->k;
    int *given = NEW_ARRAY(k->arena, int, k->out.count + 1), next = 0, uses = 0;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *in = inst_at(k, v);
        if (in->op == OP_out && given[in->index]++)
            return complain(f, v, "the output is given twice");
        if (in->op == OP_next && next++)
            return complain(f, v, "a second next state");
        uses += in->op == OP_state || in->op == OP_next || in->op == OP_decay ||
                in->op == OP_read || in->op == OP_update;
    }
    for (int i = 0; i < k->out.count; i++)
        if (!given[i])
            return say(f, "output %s is not given", k->out.at[i].name);
    if (uses && !k->state_name)
        return say(f, "the state is used but not declared");
    return k->level == LEVEL_recurrence || next || !uses || say(f, "no next state");
}

/* roles ---------------------------------------------------------------------------------------- */

/* `late`: depends on the state or on a chain value. */
static bool check_role(Verifier *f, int v, bool *late) {
    const Inst *in = inst_at(f->k, v);
    late[v] = in->op == OP_state || in->role == ROLE_chain;
    for (int i = 0; i < in->nargs; i++)
        late[v] |= in->arg[i] >= 0 && late[in->arg[i]];
    if ((unsigned)in->role > ROLE_chain || (unsigned)in->elem > ELEM_f64)
        return complain(f, v, "unknown role or element type");
    if (in->role == ROLE_factor && late[v])
        return complain(f, v, "a factor value depends on the state or the chain");
    if (in->role == ROLE_none && !value_is_cheap(in))
        return complain(f, v, "needs a role");
    if ((in->op == OP_state || in->op == OP_next) && in->role != ROLE_chain)
        return complain(f, v, "belongs to the chain");
    if (in->keep && (in->role != ROLE_factor || !op_gives_value(in->op)))
        return complain(f, v, "only factor values are kept");
    return true;
}

/* Marks what the chain evaluates: its own values, and down through cheap ones that are not kept. */
static bool check_roles(Verifier *f) {
    const Kernel *k = f->k;
    bool *late = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    bool *in_chain = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++)
        if (!check_role(f, v, late))
            return false;
    for (int v = k->inst.count - 1; v >= 0; v--) {
        const Inst *in = inst_at(k, v);
        if (in->role != ROLE_chain && !in_chain[v])
            continue;
        if (in->role == ROLE_factor && !value_is_cheap(in))
            return complain(f, v, "the chain needs it but it is not kept");
        for (int i = 0; i < in->nargs; i++)
            if (in->arg[i] >= 0 && !inst_at(k, in->arg[i])->keep)
                in_chain[in->arg[i]] = true;
    }
    return true;
}

const char *kernel_verify(const Kernel *k) {
    Verifier f = {.k = k};
    bool ok = k->axis.count >= AXIS_user || say(&f, "the five fixed axes are missing");
    ok = ok && check_ports(&f, k->in.at, k->in.count) && check_ports(&f, k->out.at, k->out.count);
    ok = ok && (k->level == LEVEL_recurrence || check_lattice(&f));
    for (int v = 0; ok && v < k->inst.count; v++)
        ok = check_inst(&f, v);
    ok = ok && check_effects(&f);
    ok = ok && (k->level != LEVEL_tile || check_roles(&f));
    CHECK(ok == !f.why);
    return f.why;
}
