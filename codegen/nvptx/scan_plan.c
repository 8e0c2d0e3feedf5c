/* Which values are made ahead, in which round, and where they stand: scan.h.
 *
 * A walk from what the factor and the chain kernel evaluate down to the inputs, which knows for whom it
 * looks at a value: what one kernel makes in passing, another has to read.
 *
 * Of an expression with a running sum in it, not the sum is read but what it goes into: a rotated key, not
 * its angle; a normaliser, not the sum of keys. It is made once where the sum is, while the factor kernel
 * would make it for every row of a token, and again for the token behind it under prev. Only a factor that
 * is the same for all channels stays apart.
 */
#include "codegen/nvptx/gradient.h"
#include "codegen/nvptx/scan.h"

/* Who wants a value: the factor or the chain kernel; the sums kernel, for a running sum's operand; the
 * rows kernel, for any other value; the grad kernel at a token; the kernel that remembers what the last
 * token leaves, which sums as rows does and reads what others have made. `EARLIER`: of a token before. */
enum { BY_factor, BY_chain, BY_sums, BY_rows, BY_tokens, BY_past, EARLIER, WANTS = 2 * EARLIER };

typedef struct Plan {
    const Kernel *k;
    const System *s;
    const Gradient *g;
    Scan *scan;
    bool *state;        /* by value: depends on the state, or on its or its chunk's cotangents */
    bool *summed;       /* by value: on a running sum */
    bool *seen[WANTS];  /* by value */
    bool *made, *stored;
    bool *late, *followed; /* by value: see Scan; looked through */
} Plan;

static bool per_token(const Inst *i) {
    return shape_has(i->shape, AXIS_C) || shape_has(i->shape, AXIS_R);
}

static bool is_vector(const Inst *i) {
    return shape_has(i->shape, AXIS_K) || shape_has(i->shape, AXIS_V);
}

/* Whether a running sum goes into value v here, and into more than a factor of it. */
static bool takes_sum(const Plan *p, int v) {
    const Inst *i = inst_at(p->k, v);
    if (!p->summed[v] || !per_token(i) || i->op == OP_prev || i->op == OP_weave || i->op == OP_rename)
        return false;
    bool whole = !is_vector(i) || i->op == OP_turn || i->op == OP_cumsum;
    for (int j = 0; j < i->nargs; j++)
        whole = whole || (p->summed[i->arg[j]] && is_vector(inst_at(p->k, i->arg[j])));
    return whole;
}

/* Whether `who` reads value v from memory. */
static bool reads(const Plan *p, int v, int who) {
    const Inst *i = inst_at(p->k, v);
    bool earlier = who >= EARLIER;
    int by = who % EARLIER;
    if (p->state[v])
        return false;
    if (by == BY_past && p->stored[v])
        return true;
    if (i->op == OP_cumsum)
        return (by != BY_rows && by != BY_past) || earlier;
    if ((by == BY_factor || by == BY_chain) && takes_sum(p, v))
        return true;
    if (i->op == OP_sum)
        return by == BY_factor ? earlier || i->axis != AXIS_K
                                 : by == BY_chain && (earlier || per_token(i));
    return i->op == OP_turn && i->axis == AXIS_V && by == BY_chain && per_token(i);
}

static void visit(Plan *p, int v, int who);

static void visit_operands(Plan *p, int v, int who) {
    const Inst *i = inst_at(p->k, v);
    for (int j = 0; j < i->nargs; j++)
        if (i->arg[j] >= 0)
            visit(p, i->arg[j], who);
}

static void visit(Plan *p, int v, int who) {
    const Inst *i = inst_at(p->k, v);
    if (p->seen[who][v])
        return;
    p->seen[who][v] = true;
    bool stored = reads(p, v, who);
    if (stored || (i->op == OP_cumsum && !p->state[v])) {
        p->made[v] = true;
        p->stored[v] = p->stored[v] || stored;
        visit_operands(p, v, i->op == OP_cumsum ? BY_sums : BY_rows);
        return;
    }
    visit_operands(p, v, i->op == OP_prev ? who % EARLIER + EARLIER : who);
}

static void find_values(Plan *p) {
    const System *s = p->s;
    visit(p, s->p, BY_factor);
    if (s->a >= 0)
        visit(p, s->a, BY_factor);
    for (int f = 0; f < s->families; f++)
        visit(p, s->family[f].x, BY_factor);
    for (int f = 0; f < s->families; f++) { /* where the chain's expressions end */
        if (s->family[f].read >= 0)
            p->seen[BY_chain][s->family[f].read] = true;
        if (s->family[f].mixed >= 0)
            p->seen[BY_chain][s->family[f].mixed] = true;
    }
    visit(p, s->X, BY_chain);
    for (int v = 0; v < p->k->inst.count && !p->g; v++)
        if (inst_at(p->k, v)->op == OP_out)
            visit(p, inst_at(p->k, v)->arg[0], BY_chain);
    for (int f = s->erase; p->g && f < s->families; f++)
        visit(p, p->g->family[f].left, BY_chain);
}

/* What is left to the next launch, when all else is known. */
static void find_past(Plan *p) {
    int count;
    const Past *past = past_list(p->k, &count);
    for (int i = 0; i < count; i++)
        if (past[i].value >= 0)
            visit(p, past[i].value, BY_past);
}

/* gradients ------------------------------------------------------------------------------------ */

static void find_late(Plan *p) {
    for (int v = 0; v < p->k->inst.count; v++) {
        const Inst *i = inst_at(p->k, v);
        p->late[v] = i->op == OP_after || i->op == OP_cumsum_back;
        for (int j = 0; j < i->nargs; j++)
            p->late[v] = p->late[v] || (i->arg[j] >= 0 && p->late[i->arg[j]]);
    }
}

/* What the grad kernel evaluates at a token for v. */
static void visit_token(Plan *p, int v) {
    if (!p->state[v]) {
        visit(p, v, BY_tokens);
        return;
    }
    const Inst *i = inst_at(p->k, v);
    for (int j = 0; j < i->nargs && !p->followed[v]; j++)
        if (i->arg[j] >= 0)
            visit_token(p, i->arg[j]);
    p->followed[v] = true;
}

/* What late value v begins with. What has no token is late with it. */
static void visit_late(Plan *p, int v) {
    const Inst *i = inst_at(p->k, v);
    if (p->followed[v])
        return;
    p->followed[v] = true;
    if (i->op == OP_cumsum_back)
        p->made[v] = p->stored[v] = true;
    for (int j = 0; j < i->nargs; j++) {
        int u = i->arg[j];
        if (!p->state[u]) {
            visit(p, u, BY_tokens);
        } else if (p->late[u] || !shape_has(inst_at(p->k, u)->shape, AXIS_C)) {
            p->late[u] = true;
            visit_late(p, u);
        } else {
            p->made[u] = p->stored[u] = true;
            visit_token(p, u);
        }
    }
}

static void find_gradients(Plan *p) {
    bool any = false;
    find_late(p);
    for (int v = 0; v < p->k->inst.count; v++) {
        const Inst *i = inst_at(p->k, v);
        if (i->op != OP_out)
            continue;
        any = any || p->late[v];
        if (p->late[i->arg[0]])
            visit_late(p, i->arg[0]);
        else
            visit_token(p, i->arg[0]);
    }
    p->scan->late = any ? p->late : NULL;
}

/* Running sums from the end that v begins with, one upon the other. */
static int depth_of(const Plan *p, int v, int *memo) {
    const Inst *i = inst_at(p->k, v);
    int depth = 0;
    if (!p->late[v])
        return 0;
    if (memo[v])
        return memo[v] - 1;
    for (int j = 0; j < i->nargs; j++) {
        int below = depth_of(p, i->arg[j], memo);
        depth = below > depth ? below : depth;
    }
    depth += i->op == OP_cumsum_back;
    memo[v] = depth + 1;
    return depth;
}

/* rounds --------------------------------------------------------------------------------------- */

static int later(int a, int b) { return a > b ? a : b; }

/* The first round that can evaluate v for `who`, one of the scan's own kernels. */
static int round_of(const Plan *p, int v, int who, int *memo) {
    const Inst *i = inst_at(p->k, v);
    int *known = &memo[who * p->k->inst.count + v], first = 0;
    if (*known)
        return *known - 1;
    if (i->op == OP_cumsum) {
        first = p->scan->value[p->scan->of[v]].round + reads(p, v, who);
    } else {
        int below = i->op == OP_prev ? who % EARLIER + EARLIER : who;
        for (int j = 0; j < i->nargs; j++)
            first = later(first, round_of(p, i->arg[j], below, memo));
    }
    *known = first + 1;
    return first;
}

bool scan_is_sum(const Kernel *k, const ScanValue *value) {
    Op op = inst_at(k, value->value)->op;
    return op == OP_cumsum || op == OP_cumsum_back;
}

int scan_lane_elements(const Kernel *k, int axis) {
    int n = 2; /* a pair that turns lies in one lane */
    if (axis < 0)
        return 1;
    while (SCAN_LANES * n < k->axis.at[axis].size)
        n *= 2;
    return n;
}

static ScanValue *add_value(Plan *p, int v) {
    Scan *scan = p->scan;
    Shape s = inst_at(p->k, v)->shape;
    ScanValue *value = &scan->value[scan->count];
    value->value = v;
    value->axis = shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
    value->n = scan_lane_elements(p->k, value->axis);
    value->stored = p->stored[v];
    scan->of[v] = scan->count++;
    return value;
}

static void list_values(Plan *p) {
    const Kernel *k = p->k;
    Scan *scan = p->scan;
    int *memo = NEW_ARRAY(k->arena, int, WANTS * k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (!p->made[v] || p->state[v])
            continue;
        ScanValue *value = add_value(p, v);
        for (int j = 0; j < i->nargs; j++)
            value->round = later(value->round,
                                 round_of(p, i->arg[j], i->op == OP_cumsum ? BY_sums : BY_rows, memo));
        scan->rounds = later(scan->rounds, value->round + 1);
    }
    scan->grad_round = scan->rounds;
    memset(memo, 0, (size_t)k->inst.count * sizeof *memo);
    for (int v = 0; v < k->inst.count; v++) {
        if (!p->made[v] || !p->state[v])
            continue;
        ScanValue *value = add_value(p, v);
        value->round = scan->grad_round + depth_of(p, v, memo);
        scan->rounds = later(scan->rounds, value->round + 1);
    }
}

/* places --------------------------------------------------------------------------------------- */

static int64_t row_bytes(const Kernel *k, const ScanValue *value) {
    return value->axis < 0 ? 4 : 4 * (int64_t)k->axis.at[value->axis].size;
}

/* Values of the most even sizes first: then each begins at a multiple of what its rows are read by. */
static void place_values(const Kernel *k, Scan *scan) {
    enum { MOST = 1 << 10 };
    for (int unit = MOST; unit >= 4; unit /= 2)
        for (int i = 0; i < scan->count; i++) {
            ScanValue *value = &scan->value[i];
            int64_t bytes = row_bytes(k, value), even = bytes & -bytes;
            if (!value->stored || (even < MOST ? even : MOST) != unit)
                continue;
            value->rows_at = scan->token_bytes;
            scan->token_bytes += bytes;
        }
    for (int i = 0; i < scan->count; i++) {
        ScanValue *value = &scan->value[i];
        value->carry_at = scan->carry_floats;
        if (scan_is_sum(k, value))
            scan->carry_floats += SCAN_LANES * value->n;
    }
}

/* Whether values that need v's cannot be made from inputs alone. */
static bool of_the_chunk(const Plan *p, const Inst *i) {
    if (!p->g)
        return i->op == OP_state;
    return (op_info[i->op].class == CLASS_CHUNK && i->op != OP_weave) || i->op == OP_after ||
           i->op == OP_cumsum_back;
}

const Scan *scan_plan(const Kernel *k, const System *s, const Gradient *g) {
    int count = k->inst.count;
    Scan *scan = NEW(k->arena, Scan);
    Plan p = {.k = k, .s = s, .g = g, .scan = scan};
    p.late = NEW_ARRAY(k->arena, bool, count);
    p.followed = NEW_ARRAY(k->arena, bool, count);
    p.state = NEW_ARRAY(k->arena, bool, count);
    p.summed = NEW_ARRAY(k->arena, bool, count);
    p.made = NEW_ARRAY(k->arena, bool, count);
    p.stored = NEW_ARRAY(k->arena, bool, count);
    for (int who = 0; who < WANTS; who++)
        p.seen[who] = NEW_ARRAY(k->arena, bool, count);
    scan->of = NEW_ARRAY(k->arena, int, count);
    scan->value = NEW_ARRAY(k->arena, ScanValue, count);
    for (int v = 0; v < count; v++) {
        const Inst *i = inst_at(k, v);
        scan->of[v] = -1;
        p.state[v] = of_the_chunk(&p, i);
        p.summed[v] = i->op == OP_cumsum;
        for (int j = 0; j < i->nargs; j++) {
            p.state[v] = p.state[v] || (i->arg[j] >= 0 && p.state[i->arg[j]]);
            p.summed[v] = p.summed[v] || (i->arg[j] >= 0 && p.summed[i->arg[j]]);
        }
    }
    find_values(&p);
    if (g)
        find_gradients(&p);
    else
        find_past(&p);
    list_values(&p);
    place_values(k, scan);
    return scan;
}

bool scan_stored(const Scan *scan, int v) {
    return scan && scan->of[v] >= 0 && scan->value[scan->of[v]].stored;
}

void scan_mark(const Kernel *k, const Scan *scan, int round, int v, bool *mark) {
    const Inst *i = inst_at(k, v);
    if (mark[v])
        return;
    mark[v] = true;
    if (i->op == OP_prev || i->op == OP_after || (scan_stored(scan, v) && scan->value[scan->of[v]].round < round))
        return;
    for (int j = 0; j < i->nargs; j++)
        if (i->arg[j] >= 0)
            scan_mark(k, scan, round, i->arg[j], mark);
}
