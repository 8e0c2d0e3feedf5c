/* Walks: the order in which a gradient token by token goes over a sequence. The state at a token is wanted
 * backwards, and is neither divided out nor kept for all tokens: it is made again, a segment at a time.
 *
 *     for the segments, forwards     the state and what is remembered to the segment's place in the
 *                                    workspace; its tokens
 *     for the segments, backwards    both back;
 *         for its tokens, forwards   the token, whose record gets what its gradient needs
 *         for its tokens, backwards  every gradient, from the record and the state's cotangent
 *
 * So every token runs forwards twice and backwards once (docs/passes.md, "Recurrences", has what was
 * weighed). */
#ifndef GDR_CODEGEN_WALK_H
#define GDR_CODEGEN_WALK_H

#include "codegen/codegen.h"

typedef struct Walk {
    Cg *cg;
    Val length;  /* i64, of the sequence */
    int segment; /* tokens of one */
    void *user;
    /* Code for one step, at the place of a loop where the builder is. Segments and tokens are i64, counted
     * from the sequence's start; `record` is the token's number in its segment. */
    void (*start)(void *user, Val segment, bool save);
    void (*forwards)(void *user, Val token, Val record); /* record NULL: not wanted */
    void (*backwards)(void *user, Val token, Val record);
    void (*end)(void *user, Val segment); /* behind a segment's gradients; NULL: nothing */
} Walk;

/* Tokens of a segment, 16 to 64: as many as have records of so many bytes within `most`. */
int walk_segment(int64_t record_bytes, int64_t most);
void walk_sequence(const Walk *w);

#endif
