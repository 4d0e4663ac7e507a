/*
 * The conversation with an agent about one service, as a state machine without a clock, HTTP or
 * uWSGI. What the agent has of ours, as far as is known, and what it is asked next:
 *
 * | state                 | the agent has                               | next step            |
 * |-----------------------|---------------------------------------------|----------------------|
 * | ABSENT                | nothing                                     | register, if ready   |
 * | UNCONFIRMED           | perhaps a registration: it did not answer   | register, if ready   |
 * | REGISTERED            | what this program registered                | beat                 |
 * | REGISTERED_UNVERIFIED | the same, but its list lacks something      | look up              |
 * | OUTDATED              | our registration, but another one than this | register if ready,   |
 * |                       | program's, with another token, or without   | else beat            |
 * |                       | its check                                   |                      |
 * | OUTDATED_UNVERIFIED   | the same, perhaps; so it is after a reload  | look up              |
 * | REJECTED              | something that made it refuse a beat        | look up              |
 * | TAKEN                 | a registration of another process           | look up, after a bit |
 * | UNWANTED_UNVERIFIED   | perhaps ours, which is not wanted any more  | look up              |
 * | UNWANTED              | ours, which is not wanted any more          | deregister           |
 * | GONE                  | nothing, and so it stays                    | nothing              |
 *
 * A registration is not wanted any more when uWSGI stops, and when a reload's configuration does
 * not have it. What leads from one state to another is the table in conversation.c.
 *
 * A look-up may take its time: while it does, fails, or can't be made, UNVERIFIED services beat on.
 */
#ifndef CONSUL_CONVERSATION_H
#define CONSUL_CONVERSATION_H

#include <stddef.h>
#include <stdint.h>

enum consul_state {
    CONSUL_UNCHANGED, /* only in the table */
    CONSUL_ABSENT,
    CONSUL_UNCONFIRMED,
    CONSUL_REGISTERED,
    CONSUL_REGISTERED_UNVERIFIED,
    CONSUL_OUTDATED,
    CONSUL_OUTDATED_UNVERIFIED,
    CONSUL_REJECTED,
    CONSUL_TAKEN,
    CONSUL_UNWANTED_UNVERIFIED,
    CONSUL_UNWANTED,
    CONSUL_GONE,
    CONSUL_STATES
};

enum consul_event {
    CONSUL_ON_REGISTERED,
    CONSUL_ON_UNCONFIRMED, /* a registration was not answered, but may have arrived */
    CONSUL_ON_BEAT,
    CONSUL_ON_BEAT_REFUSED,
    CONSUL_ON_OURS, /* and the next three: what a look-up found */
    CONSUL_ON_OTHERS,
    CONSUL_ON_NOTHING,
    CONSUL_ON_UNCLEAR, /* as it was refused */
    CONSUL_ON_DEREGISTERED,
    CONSUL_ON_REFUSED, /* the request is wrong */
    CONSUL_ON_FAILED,  /* the agent is in trouble itself, and what it says proves nothing */
    CONSUL_ON_SILENCE,
    CONSUL_ON_SHORT_LIST, /* the agent lists fewer registrations than it should have */
    CONSUL_ON_STATUS,     /* of the workers: another one */
    CONSUL_ON_TOKEN,      /* another one: what was registered with the last one may not hold */
    CONSUL_ON_STOP,
    CONSUL_EVENTS
};

enum consul_ask {
    CONSUL_ASK_NOTHING,
    CONSUL_ASK_LIST, /* of all services at once */
    CONSUL_ASK_LOOKUP,
    CONSUL_ASK_REGISTER,
    CONSUL_ASK_BEAT,
    CONSUL_ASK_DEREGISTER
};

/* The HTTP status of an agent at its limit: it says nothing of the request. */
#define CONSUL_AT_LIMIT 429

/* Moments are milliseconds of the monotonic clock. */
#define CONSUL_NEVER INT64_MAX

struct consul_talk {
    int wait_workers;      /* register only when they are ready */
    int can_look_up;       /* whether a registration is ours */
    int64_t beat_interval; /* milliseconds, 0 if the agent checks for itself */

    enum consul_state state;
    int64_t due;      /* the next step */
    int64_t since;    /* it is in this state, or has beaten in it */
    int64_t retry_at; /* nothing before this */
    int refusals;     /* in a row */
    int64_t gone_at;  /* when it was deregistered */
};

struct consul_moment {
    int64_t now;
    int ready; /* the workers are, or once were */
    int reloading;
};

struct consul_step {
    enum consul_ask ask;
    int64_t at; /* the earlier, the more urgent */
};

/* `can_look`: no look-up is under way, and one can be made. */
struct consul_step consul_next_step(const struct consul_talk *talk,
                                    const struct consul_moment *moment, int can_look);
/* What an answer means; `http` is 0 where there was none, `owners` how often it names ours. */
enum consul_event consul_event_of(enum consul_ask ask, long http, size_t owners);
void consul_transition(struct consul_talk *talk, enum consul_event event, int64_t now);
/* Whether the agent should list it under our owner. */
int consul_is_listed(const struct consul_talk *talk);
/* Whether the agent may still hold a registration that it should not. */
int consul_is_unwanted(const struct consul_talk *talk);

#endif
