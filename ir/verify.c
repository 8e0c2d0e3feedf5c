/* What a well-formed kernel is. Passes and code generators rely on exactly this.
 *
 *   all levels   every axis that is used has a size; ports have distinct names; operands stand
 *                before their use; operations are legal at the level; shapes are the inferred ones,
 *                over C, R, U, K, V; every output is given once
 *   recurrence   with a `rewind`, a gradient kernel: what acts on the state forwards, prev and cumsum
 *                stand before it; what acts on the cotangent, outs, after and cumsum_back behind it;
 *                a place counts the decays and updates of the token
 *   chunk, tile  R = U = C * slots; a weave has one operand per slot; a place counts the updates of
 *                one token; the state read implies one next state; in gradient kernels that and what
 *                prev and cumsum remember do not depend on what comes later in the sequence
 *   facts.past   what prev and cumsum remember lies within
 *   tile         roles, below; at other levels no role, keep or element type
 *
 * Roles. A value depends on no later role than its own, in the order factor, chain, reverse, grad (the
 * last two in gradient kernels); `factor` values not on the state either. Values without a role are
 * recomputed where they are needed, so they must be cheap (value_is_cheap). What a role takes from
 * an earlier one is kept, or cheap and made of such values. */
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
    return in->op == OP_weave || in->op == OP_rename || in->op == OP_slot ||
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
    int most = 0;
    if (in->op == OP_slot)
        most = slots_of(k) - 1;
    else if (in->op == OP_scores || in->op == OP_carry)
        most = shape_has(in->shape, AXIS_R) ? 0 : slots_of(k);
    else if (in->nargs > 0 && in->arg[0] >= 0) /* cotangents of these: the first operand has the rows */
        most = shape_has(inst_at(k, in->arg[0])->shape, AXIS_R) ? 0 : slots_of(k);
    bool places = in->op == OP_slot || in->op == OP_scores || in->op == OP_carry ||
                  in->op == OP_scores_x || in->op == OP_scores_y || in->op == OP_scores_a ||
                  in->op == OP_carry_a;
    if (places && (in->place < 0 || in->place > most))
        return complain(f, v, "a place that is not there");
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
    if ((in->op == OP_prev || in->op == OP_cumsum) &&
        (in->index < 0 || in->index > k->facts.past ||
         (k->facts.past && shape_elements(k, shape_features(s)) > k->facts.past - in->index)))
        return complain(f, v, "a place outside of what is remembered");
    if (k->level != LEVEL_tile && (in->role || in->keep || in->elem))
        return complain(f, v, "role, keep and element type belong to the tile level");
    return k->level == LEVEL_recurrence || check_chunk_fields(f, v);
}

/* How often an output is to be given: once, or once a row. */
static int rows_of_output(const Kernel *k, int port) {
    Shape s = k->out.at[port].shape;
    return s.rank && s.axis[0] >= AXIS_user ? k->axis.at[s.axis[0]].size : 1;
}

static bool check_out(Verifier *f, int v, bool gradient, int *given) {
    const Inst *in = inst_at(f->k, v);
    const Port *p = &f->k->out.at[in->index];
    if (!gradient && (p->is_param || rows_of_output(f->k, in->index) > 1))
        return complain(f, v, "only a gradient kernel gives params and rows");
    Shape a = shape_without(inst_at(f->k, in->arg[0])->shape, AXIS_C);
    if (!gradient && !shape_equal(a, p->shape))
        return complain(f, v, "the operand's axes are not the output's");
    for (int before = 0; before < v; before++) {
        const Inst *other = inst_at(f->k, before);
        if (other->op == OP_out && other->index == in->index &&
            (rows_of_output(f->k, in->index) == 1 || other->row == in->row))
            return complain(f, v, "the output is given twice");
    }
    given[in->index]++;
    return true;
}

/* The two halves of a token of a gradient kernel; -1: either. */
static int half_of(const Inst *in) {
    switch ((int)in->op) {
    case OP_decay: case OP_read: case OP_update: case OP_prev: case OP_cumsum: return 0;
    case OP_reread: case OP_coread: case OP_codecay: case OP_coupdate: case OP_decay_a: case OP_after:
    case OP_cumsum_back: case OP_out: return 1;
    default: return -1;
    }
}

static bool check_token(Verifier *f) {
    const Kernel *k = f->k;
    int events = 0, rewinds = 0;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *in = inst_at(k, v);
        if (in->op == OP_rewind && rewinds++)
            return complain(f, v, "a second one");
        events += in->op == OP_decay || in->op == OP_update;
        int half = half_of(in);
        if (kernel_is_gradient(k) && half >= 0 && half != rewinds)
            return complain(f, v, half ? "stands before `rewind`" : "stands behind `rewind`");
        if (!rewinds && half == 1 && in->op != OP_out)
            return complain(f, v, "belongs to a gradient kernel");
        if ((in->op == OP_reread || in->op == OP_decay_a) && (in->place < 0 || in->place > events))
            return complain(f, v, "a place that is not there");
    }
    return true;
}

static bool check_effects(Verifier *f) {
    const Kernel *k = f->k;
    int *given = NEW_ARRAY(k->arena, int, k->out.count + 1), next = 0, uses = 0, conext = 0;
    bool gradient = kernel_is_gradient(k), *later = values_from_later(k);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *in = inst_at(k, v);
        if (in->op == OP_out && !check_out(f, v, gradient, given))
            return false;
        if (in->op == OP_next && next++)
            return complain(f, v, "a second next state");
        if (in->op == OP_conext && conext++)
            return complain(f, v, "a second next costate");
        if (later[v] && (in->op == OP_next || in->op == OP_prev || in->op == OP_cumsum))
            return complain(f, v, "depends on what comes later in the sequence");
        if (!gradient && (in->op == OP_costate || in->op == OP_after || in->op == OP_cumsum_back))
            return complain(f, v, "belongs to a gradient kernel");
        uses += in->op == OP_state || in->op == OP_next || in->op == OP_conext ||
                (op_info[in->op].class == CLASS_STATE && in->op != OP_out && in->op != OP_rewind);
    }
    for (int i = 0; i < k->out.count; i++)
        if (given[i] < rows_of_output(k, i))
            return say(f, "output %s is not given", k->out.at[i].name);
    if (uses && !k->state_name)
        return say(f, "the state is used but not declared");
    return k->level == LEVEL_recurrence || next || !uses || say(f, "no next state");
}

/* roles ---------------------------------------------------------------------------------------- */

/* `late`: the last role that the value depends on, through values without one. */
static bool check_role(Verifier *f, int v, Role *late) {
    const Inst *in = inst_at(f->k, v);
    if ((unsigned)in->role > ROLE_grad || (unsigned)in->elem > ELEM_f64)
        return complain(f, v, "unknown role or element type");
    late[v] = in->role;
    if (in->op == OP_state || in->op == OP_costate)
        late[v] = in->op == OP_state ? ROLE_chain : ROLE_reverse;
    for (int i = 0; i < in->nargs; i++)
        if (in->arg[i] >= 0 && late[in->arg[i]] > late[v])
            late[v] = late[in->arg[i]];
    if (in->role == ROLE_factor && late[v] > ROLE_factor)
        return complain(f, v, "a factor value depends on the state or the chain");
    if (in->role != ROLE_none && late[v] > in->role)
        return complain(f, v, "depends on a later role");
    if (in->role == ROLE_none && !value_is_cheap(in))
        return complain(f, v, "needs a role");
    if ((in->op == OP_state || in->op == OP_next) && in->role != ROLE_chain)
        return complain(f, v, "belongs to the chain");
    if ((in->op == OP_costate || in->op == OP_conext) && in->role != ROLE_reverse)
        return complain(f, v, "belongs to the reverse chain");
    bool forward = !kernel_is_gradient(f->k);
    if (in->keep && (in->role == ROLE_none || in->role == ROLE_grad || !op_gives_value(in->op) ||
                     (forward && in->role != ROLE_factor)))
        return complain(f, v, forward ? "only factor values are kept"
                                      : "only values that a later role can use are kept");
    return true;
}

/* Marks what each role evaluates: its own values, and down through cheap ones that are not kept. */
static bool check_roles(Verifier *f) {
    const Kernel *k = f->k;
    Role *late = NEW_ARRAY(k->arena, Role, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++)
        if (!check_role(f, v, late))
            return false;
    for (Role r = ROLE_chain; r <= ROLE_grad; r++) {
        bool *here = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
        for (int v = k->inst.count - 1; v >= 0; v--) {
            const Inst *in = inst_at(k, v);
            if (in->role != r && !here[v])
                continue;
            if (in->role != r && in->role != ROLE_none && !value_is_cheap(in))
                return complain(f, v, r == ROLE_chain ? "the chain needs it but it is not kept"
                                                      : "a later role needs it but it is not kept");
            for (int i = 0; i < in->nargs; i++)
                if (in->arg[i] >= 0 && !(inst_at(k, in->arg[i])->keep &&
                                         inst_at(k, in->arg[i])->role != r))
                    here[in->arg[i]] = true;
        }
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
    ok = ok && (k->level != LEVEL_recurrence || check_token(&f)) && check_effects(&f);
    ok = ok && (k->level != LEVEL_tile || check_roles(&f));
    CHECK(ok == !f.why);
    return f.why;
}
