/* Names, declarations and statements of a variant. A name stands for one thing: there is no
 * shadowing; names declared in a loop are visible in its body only. A name is used after its
 * declaration. Everything here is independent of the sizes of dims; what is not is checked by
 * binding the default sizes at the end.
 */
#include "frontend/check.h"

#include <string.h>

/* names ---------------------------------------------------------------------------------------- */

static Decl *visible(const Checker *c, const char *name) {
    for (int i = c->scope.count - 1; i >= 0; i--)
        if (c->scope.at[i]->name == name)
            return c->scope.at[i];
    return NULL;
}

/* A declaration of the variant's top level, wherever it stands. */
static Decl *top_level(const Checker *c, const char *name) {
    for (int i = 0; i < c->v->stmt.count; i++) {
        const Stmt *s = c->v->stmt.at[i];
        for (int j = 0; j < s->decl.count && s->kind != STMT_for; j++)
            if (s->decl.at[j]->name == name)
                return s->decl.at[j];
    }
    return NULL;
}

static void suggest(Checker *c, const char *name, bool dims) {
    VEC(const char *) known = {0};
    for (int i = 0; i < c->scope.count; i++)
        if (!dims || c->scope.at[i]->kind == DECL_dim)
            VEC_PUSH(c->arena, &known, c->scope.at[i]->name);
    for (int i = 0; i < FN_count && !dims; i++)
        VEC_PUSH(c->arena, &known, fn_info[i].name);
    const char *close = diag_closest(name, known.at, known.count);
    if (close)
        diag_help(c->d, "did you mean '%s'?", close);
}

/* Stands for a name already complained about. */
static Decl *poisoned(Checker *c, const char *name, Span span) {
    Decl *decl = NEW(c->arena, Decl);
    decl->kind = DECL_let;
    decl->name = name;
    decl->span = decl->name_span = span;
    VEC_PUSH(c->arena, &c->scope, decl);
    return decl;
}

Decl *check_name(Checker *c, const char *name, Span span) {
    Decl *decl = visible(c, name);
    if (decl) {
        decl->used = true;
        return decl;
    }
    Decl *later = top_level(c, name);
    if (later) {
        diag_error(c->d, span, "'%s' is used before its declaration", name);
        diag_note(c->d, later->span, "declared here");
    } else {
        diag_error(c->d, span, "unknown name '%s'", name);
        suggest(c, name, false);
    }
    return poisoned(c, name, span);
}

static Decl *check_dim(Checker *c, const char *name, Span span) {
    Decl *decl = visible(c, name);
    if (decl && decl->kind == DECL_dim)
        return decl;
    if (decl && decl->type.kind == TYPE_poison)
        return NULL;
    if (decl) {
        diag_error(c->d, span, "'%s' is not a dim", name);
        diag_note(c->d, decl->span, "declared here");
        return NULL;
    }
    diag_error(c->d, span, "unknown dim '%s'", name);
    suggest(c, name, true);
    if (!top_level(c, name))
        diag_help(c->d, "declare it first: dim %s = 128", name);
    poisoned(c, name, span);
    return NULL;
}

bool check_is_axis(const Checker *c, const Decl *dim) {
    return dim == c->axis[0] || dim == c->axis[1];
}

static bool one_of(const char *name, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(name, *list))
            return true;
    return false;
}

/* Enters a name into the scope; complains when it is taken. */
static void declare(Checker *c, Decl *decl) {
    static const char *const ports[] = {"S0", "cu_seqlens", NULL};
    static const char *const axes[] = {"C", "R", "U", NULL};
    bool port = decl->kind == DECL_in || decl->kind == DECL_param || decl->kind == DECL_out;
    const Decl *earlier = visible(c, decl->name);
    if (earlier && earlier->type.kind != TYPE_poison) {
        diag_error(c->d, decl->name_span, "'%s' is declared twice", decl->name);
        diag_note(c->d, earlier->span, "first declared here");
    } else if (!strcmp(decl->name, "I")) {
        diag_error(c->d, decl->name_span, "'I' is the identity matrix");
    } else if (fn_find(decl->name) != FN_count) {
        diag_error(c->d, decl->name_span, "'%s' is a function", decl->name);
    } else if (port && one_of(decl->name, ports)) {
        diag_error(c->d, decl->name_span, "'%s' is reserved among tensors", decl->name);
    } else if (decl->kind == DECL_dim && one_of(decl->name, axes)) {
        diag_error(c->d, decl->name_span, "'%s' is reserved: the compiler's own axes are C, R and U",
                   decl->name);
    }
    decl->slot = c->v->decl.count;
    VEC_PUSH(c->arena, &c->v->decl, decl);
    VEC_PUSH(c->arena, &c->scope, decl);
}

/* declarations --------------------------------------------------------------------------------- */

static void check_constant(Checker *c, Expr *e, const char *what) {
    type_expr(c, e);
    if (e->type.kind == TYPE_poison || e->constant)
        return;
    diag_error(c->d, e->span, "%s is a compile-time number", what);
    diag_help(c->d, "it is made of numbers, dims, consts and functions of these");
    e->type.kind = TYPE_poison;
}

static void check_number_decl(Checker *c, Decl *decl) {
    check_constant(c, decl->value, decl->kind == DECL_dim ? "a dim's size" : "a const");
    decl->type = decl->value->type;
    decl->constant = true;
    declare(c, decl);
}

/* Resolves the declared shape; false after a message. */
static bool resolve_shape(Checker *c, Decl *decl) {
    bool ok = true;
    for (int i = 0; i < decl->ndims; i++) {
        decl->dim[i] = check_dim(c, decl->dim_name[i], decl->dim_span[i]);
        ok &= decl->dim[i] != NULL;
    }
    return ok;
}

static void check_port(Checker *c, Decl *decl) {
    bool ok = resolve_shape(c, decl);
    decl->port = c->v->nports++;
    decl->per_token = decl->kind == DECL_in;
    for (int i = 0; i < decl->range.count; i++) {
        const RangeClause *r = &decl->range.at[i];
        if (r->lo)
            check_constant(c, r->lo, "a range's bound");
        if (r->hi)
            check_constant(c, r->hi, "a range's bound");
    }
    if (ok && decl->ndims == 0) {
        decl->type = (Type){.kind = TYPE_scalar};
    } else if (ok && decl->ndims == 1) {
        decl->type = (Type){TYPE_column, {decl->dim[0], NULL}};
    } else if (ok && decl->ndims == 2 && !check_is_axis(c, decl->dim[0]) &&
               (check_is_axis(c, decl->dim[1]) || !c->axis[0])) {
        decl->type = (Type){TYPE_table, {decl->dim[0], decl->dim[1]}};
    } else if (ok) {
        diag_error(c->d, decl->span, "'%s' cannot have this shape", decl->name);
        diag_help(c->d, "an input is a scalar, a vector [K] or [V] over an axis of the state, or n of "
                        "these: [n], [n, K], [n, V]");
    }
    declare(c, decl);
}

static void check_let(Checker *c, Decl *decl) {
    Expr *e = decl->value;
    type_expr(c, e);
    decl->type = e->type;
    decl->constant = e->constant;
    decl->per_token = e->per_token;
    decl->state = e->state;
    if (e->type.kind == TYPE_matrix || e->type.kind == TYPE_identity)
        decl->weight = e->weight;
    if ((e->type.kind == TYPE_matrix || e->type.kind == TYPE_identity) && e->state) {
        diag_error(c->d, e->span, "a let cannot hold a matrix made of the state");
        diag_help(c->d, "update the state itself, step by step: %s = ...", c->v->state->name);
        decl->type.kind = TYPE_poison;
    }
    declare(c, decl);
}

static void check_out(Checker *c, Decl *decl) {
    bool ok = resolve_shape(c, decl);
    Expr *e = decl->value;
    type_expr(c, e);
    decl->port = c->v->nouts++;
    if (ok && (decl->ndims > 1 || (decl->ndims && c->axis[0] && !check_is_axis(c, decl->dim[0])))) {
        diag_error(c->d, decl->span, "an output is a scalar or a vector over an axis of the state");
        ok = false;
    }
    Type t = {decl->ndims ? TYPE_column : TYPE_scalar, {decl->dim[0], NULL}};
    if (ok && e->type.kind != TYPE_poison && !type_same(t, e->type)) {
        diag_error(c->d, e->span, "output '%s' is declared %s, but its value is %s", decl->name,
                   type_text(c, t), type_text(c, e->type));
        type_note_origin(c, e);
        if (e->type.kind == TYPE_column)
            diag_help(c->d, "declare it: out %s[%s] = ...", decl->name, e->type.dim[0]->name);
        else if (e->type.kind == TYPE_row)
            diag_help(c->d, "vectors are columns: transpose it");
    }
    decl->type = t;
    declare(c, decl);
}

static void check_state(Checker *c, Decl *decl) {
    if (c->v->state) {
        diag_error(c->d, decl->span, "a second state");
        diag_note(c->d, c->v->state->span, "the first one is here; a variant has one matrix state");
        return;
    }
    bool ok = resolve_shape(c, decl);
    if (decl->ndims != 2) {
        diag_error(c->d, decl->span, "the state is a matrix: state %s[K, V]", decl->name);
        ok = false;
    } else if (ok && decl->dim[0] == decl->dim[1]) {
        diag_error(c->d, decl->span, "the state's two axes must be two different dims");
        diag_help(c->d, "declare dim V = %s's size, and state %s[%s, V]: a caller may still choose "
                        "equal sizes", decl->dim[0]->name, decl->name, decl->dim[0]->name);
        ok = false;
    }
    if (ok)
        decl->type = (Type){TYPE_matrix, {decl->dim[0], decl->dim[1]}};
    decl->state = true;
    declare(c, decl);
    c->v->state = decl;
}

/* statements ----------------------------------------------------------------------------------- */

static void check_update(Checker *c, Stmt *s) {
    type_expr(c, s->value);
    Decl *target = visible(c, s->name);
    if (!target)
        target = check_name(c, s->name, s->name_span);
    if (target->type.kind == TYPE_poison)
        return;
    if (target->kind != DECL_state) {
        diag_error(c->d, s->name_span, "'%s' is not a state", s->name);
        diag_note(c->d, target->span, "declared here");
        if (target->kind != DECL_out)
            diag_help(c->d, "a new name is introduced by: let x = ...");
        return;
    }
    s->target = target;
    Type t = s->value->type;
    if (t.kind == TYPE_poison || type_same(t, target->type))
        return;
    diag_error(c->d, s->value->span, "the state is %s, but this is %s",
               type_text(c, target->type), type_text(c, t));
    diag_note(c->d, target->span, "declared here");
    if (t.kind == TYPE_matrix && t.dim[0] == target->dim[1] && t.dim[1] == target->dim[0])
        diag_help(c->d, "transpose it");
}

static void check_stmt(Checker *c, Stmt *s);

static void check_for(Checker *c, Stmt *s) {
    int scope = c->scope.count;
    Decl *dim = check_dim(c, s->name, s->name_span), *loop = s->decl.at[0];
    s->target = dim;
    if (dim && check_is_axis(c, dim)) {
        diag_error(c->d, s->name_span, "a loop over '%s', an axis of the state", s->name);
        diag_help(c->d, "loops are for sub-steps inside a token; vectors need none");
    }
    loop->type = (Type){.kind = TYPE_scalar};
    loop->constant = loop->used = true;
    declare(c, loop);
    c->loops++;
    for (int i = 0; i < s->body.count; i++) {
        Stmt *inner = s->body.at[i];
        if (inner->kind == STMT_let || inner->kind == STMT_update || inner->kind == STMT_for)
            check_stmt(c, inner);
        else
            diag_error(c->d, inner->span, "only let, updates and for may stand in a loop");
    }
    c->loops--;
    c->scope.count = scope;
}

static void check_stmt(Checker *c, Stmt *s) {
    switch (s->kind) {
    case STMT_update: check_update(c, s); return;
    case STMT_for: check_for(c, s); return;
    default: break;
    }
    for (int i = 0; i < s->decl.count; i++) {
        Decl *decl = s->decl.at[i];
        switch (decl->kind) {
        case DECL_dim:
        case DECL_const: check_number_decl(c, decl); break;
        case DECL_in:
        case DECL_param: check_port(c, decl); break;
        case DECL_let: check_let(c, decl); break;
        case DECL_out: check_out(c, decl); break;
        case DECL_state: check_state(c, decl); break;
        case DECL_loop: BUG("loop variable outside a loop");
        }
    }
}

/* The axes of the state are needed before its declaration: shapes of inputs refer to them. */
static void find_axes(Checker *c) {
    for (int i = 0; i < c->v->stmt.count; i++) {
        const Stmt *s = c->v->stmt.at[i];
        if (s->kind != STMT_state)
            continue;
        const Decl *state = s->decl.at[0];
        if (state->ndims == 2 && state->dim_name[0] != state->dim_name[1]) {
            const Decl *rows = top_level(c, state->dim_name[0]);
            const Decl *cols = top_level(c, state->dim_name[1]);
            if (rows && cols && rows->kind == DECL_dim && cols->kind == DECL_dim) {
                c->axis[0] = rows;
                c->axis[1] = cols;
            }
        }
        return;
    }
}

static void warn_unused(Checker *c) {
    for (int i = 0; i < c->v->decl.count; i++) {
        const Decl *decl = c->v->decl.at[i];
        const char *what = decl->kind == DECL_in      ? "input"
                           : decl->kind == DECL_param ? "param"
                           : decl->kind == DECL_let   ? "let"
                           : decl->kind == DECL_const ? "const"
                                                      : NULL;
        if (what && !decl->used)
            diag_warning(c->d, decl->span, "%s '%s' is never used", what, decl->name);
    }
}

static void check_variant(SpecFile *f, Variant *v, Diag *d) {
    Checker c = {.arena = f->arena, .names = f->names, .d = d, .v = v};
    int before = d->errors;
    find_axes(&c);
    for (int i = 0; i < v->stmt.count; i++)
        check_stmt(&c, v->stmt.at[i]);
    if (!v->state && d->errors == before) {
        diag_error(d, v->name_span, "variant '%s' has no state", v->name);
        diag_help(d, "declare one: state S[K, V]");
    }
    if (!v->nouts && d->errors == before) {
        diag_error(d, v->name_span, "variant '%s' has no output", v->name);
        diag_help(d, "for example: out o[V] = S' * q");
    }
    if (d->errors > before) {
        spec_bind_declarations(f->arena, v, d);
        return;
    }
    warn_unused(&c);
    spec_bind(f->arena, v, NULL, d);
}

bool spec_check(SpecFile *f, Diag *d) {
    int before = d->errors;
    if (!f->syntax_ok || f->checked)
        return f->checked;
    for (int i = 0; i < f->variant.count; i++) {
        Variant *v = f->variant.at[i];
        for (int j = 0; j < i; j++) {
            if (f->variant.at[j]->name != v->name)
                continue;
            diag_error(d, v->name_span, "a second variant '%s'", v->name);
            diag_note(d, f->variant.at[j]->name_span, "the first one is here");
        }
        check_variant(f, v, d);
    }
    f->checked = d->errors == before;
    return f->checked;
}

const Variant *spec_variant(const SpecFile *f, const char *name, Diag *d) {
    VEC(const char *) known = {0};
    for (int i = 0; i < f->variant.count; i++) {
        if (name ? !strcmp(f->variant.at[i]->name, name) : f->variant.count == 1)
            return f->variant.at[i];
        VEC_PUSH(d->arena, &known, f->variant.at[i]->name);
    }
    Span at = f->variant.count ? f->variant.at[0]->name_span : (Span){0, 0};
    if (!name) {
        diag_error(d, at, "this file has %d variants: name one", f->variant.count);
        return NULL;
    }
    diag_error(d, at, "there is no variant '%s' in this file", name);
    const char *close = diag_closest(name, known.at, known.count);
    if (close)
        diag_help(d, "did you mean '%s'?", close);
    return NULL;
}
