/* The conversation with an agent about one service: see the header for its states. */
#include "conversation.h"

/* Milliseconds. */
#define TAKEN_INTERVAL 750      /* between two looks at a registration of another process */
#define PAUSE_FIRST 500         /* after a refusal, doubled with each */
#define PAUSE_DOUBLINGS 5       /* and not more often than this */
#define PAUSE_LIMIT 15000       /* where the request is wrong */
#define PAUSE_LIMIT_SERVER 1000 /* where the agent is in trouble itself */

#define ON(event, state) [CONSUL_ON_##event] = CONSUL_##state

/* For each state what is asked next, and which events lead to another state. */
static const struct {
    enum consul_ask ask;
    enum consul_state after[CONSUL_EVENTS];
} states[CONSUL_STATES] = {
    [CONSUL_ABSENT] = {CONSUL_ASK_REGISTER,
                       {ON(REGISTERED, REGISTERED), ON(UNCONFIRMED, UNCONFIRMED), ON(STOP, GONE)}},
    [CONSUL_UNCONFIRMED] = {CONSUL_ASK_REGISTER,
                            {ON(REGISTERED, REGISTERED), ON(STOP, UNWANTED_UNVERIFIED)}},
    [CONSUL_REGISTERED] = {CONSUL_ASK_BEAT,
                           {ON(BEAT_REFUSED, REJECTED), ON(SHORT_LIST, REGISTERED_UNVERIFIED),
                            ON(TOKEN, OUTDATED), ON(STOP, UNWANTED_UNVERIFIED)}},
    [CONSUL_REGISTERED_UNVERIFIED] = {CONSUL_ASK_LOOKUP,
                                      {ON(OURS, REGISTERED), ON(OTHERS, TAKEN), ON(NOTHING, ABSENT),
                                       ON(UNCLEAR, REGISTERED), ON(BEAT_REFUSED, REJECTED),
                                       ON(TOKEN, OUTDATED_UNVERIFIED),
                                       ON(STOP, UNWANTED_UNVERIFIED)}},
    /* There is a better question as soon as the workers are ready, or need not be. */
    [CONSUL_OUTDATED] = {CONSUL_ASK_BEAT,
                         {ON(REGISTERED, REGISTERED), ON(BEAT_REFUSED, REJECTED),
                          ON(SHORT_LIST, OUTDATED_UNVERIFIED), ON(STOP, UNWANTED_UNVERIFIED)}},
    [CONSUL_OUTDATED_UNVERIFIED] = {CONSUL_ASK_LOOKUP,
                                    {ON(OURS, OUTDATED), ON(OTHERS, TAKEN), ON(NOTHING, ABSENT),
                                     ON(UNCLEAR, OUTDATED), ON(BEAT_REFUSED, REJECTED),
                                     ON(STOP, UNWANTED_UNVERIFIED)}},
    /* Where it is still ours, its check is not there any more. */
    [CONSUL_REJECTED] = {CONSUL_ASK_LOOKUP,
                         {ON(OURS, OUTDATED), ON(OTHERS, TAKEN), ON(NOTHING, ABSENT),
                          ON(UNCLEAR, OUTDATED), ON(STOP, UNWANTED_UNVERIFIED)}},
    [CONSUL_TAKEN] = {CONSUL_ASK_LOOKUP,
                      {ON(OURS, OUTDATED), ON(NOTHING, ABSENT), ON(UNCLEAR, TAKEN),
                       ON(STOP, GONE)}},
    [CONSUL_UNWANTED_UNVERIFIED] = {CONSUL_ASK_LOOKUP,
                                    {ON(REGISTERED, UNWANTED), ON(OURS, UNWANTED), ON(OTHERS, GONE),
                                     ON(NOTHING, GONE), ON(UNCLEAR, UNWANTED)}},
    [CONSUL_UNWANTED] = {CONSUL_ASK_DEREGISTER,
                         {ON(DEREGISTERED, GONE), ON(SHORT_LIST, UNWANTED_UNVERIFIED),
                          ON(STOP, UNWANTED_UNVERIFIED)}},
    /* A registration that was under way may still be answered. */
    [CONSUL_GONE] = {CONSUL_ASK_NOTHING,
                     {ON(REGISTERED, UNWANTED), ON(UNCONFIRMED, UNWANTED_UNVERIFIED)}},
};

static int64_t sooner(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t later(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* ---- what is asked next ---- */

/* While uWSGI reloads it beats four times as often: nobody beats while the program starts. */
static int64_t beat_at(const struct consul_talk *talk, const struct consul_moment *moment) {
    if (!talk->beat_interval)
        return CONSUL_NEVER;
    return talk->due - (moment->reloading ? talk->beat_interval * 3 / 4 : 0);
}

/* Without a look-up's answer, so that what may be another's hears as little as possible. */
static int64_t unverified_beat_at(const struct consul_talk *talk) {
    if (talk->state != CONSUL_REGISTERED_UNVERIFIED && talk->state != CONSUL_OUTDATED_UNVERIFIED)
        return CONSUL_NEVER;
    return talk->beat_interval ? talk->since + talk->beat_interval / 2 : CONSUL_NEVER;
}

struct consul_step consul_next_step(const struct consul_talk *talk,
                                    const struct consul_moment *moment, int can_look) {
    struct consul_step step = {states[talk->state].ask, talk->due};
    int may_register = moment->ready || !talk->wait_workers;
    if (talk->state == CONSUL_OUTDATED && may_register) {
        step.ask = CONSUL_ASK_REGISTER;
        step.at = talk->since;
    } else if (step.ask == CONSUL_ASK_NOTHING ||
               (step.ask == CONSUL_ASK_REGISTER && !may_register)) {
        step.at = CONSUL_NEVER;
    } else if (step.ask == CONSUL_ASK_BEAT) {
        step.at = beat_at(talk, moment);
    } else if (step.ask == CONSUL_ASK_LOOKUP) {
        int64_t beat = unverified_beat_at(talk);
        if (!can_look || beat <= step.at || beat <= moment->now)
            step = (struct consul_step){CONSUL_ASK_BEAT, beat};
    }
    if (step.at < talk->retry_at)
        step.at = talk->retry_at;
    return step;
}

/* ---- what comes of it ---- */

enum consul_event consul_event_of(enum consul_ask ask, long http, size_t owners) {
    int accepted = http >= 200 && http < 300;
    int in_trouble = http >= 500 || http == CONSUL_AT_LIMIT;
    if (!http)
        return ask == CONSUL_ASK_REGISTER ? CONSUL_ON_UNCONFIRMED : CONSUL_ON_SILENCE;
    if (ask == CONSUL_ASK_LOOKUP) {
        if (in_trouble)
            return CONSUL_ON_FAILED;
        if (http != 200)
            return http == 404 ? CONSUL_ON_NOTHING : CONSUL_ON_UNCLEAR;
        return owners ? CONSUL_ON_OURS : CONSUL_ON_OTHERS;
    }
    if (ask == CONSUL_ASK_REGISTER && accepted)
        return CONSUL_ON_REGISTERED;
    if (ask == CONSUL_ASK_DEREGISTER && (accepted || http == 404))
        return CONSUL_ON_DEREGISTERED;
    /* An unknown check is 404, and was 500 in older versions. */
    if (ask == CONSUL_ASK_BEAT && http != 403 && http != CONSUL_AT_LIMIT)
        return accepted ? CONSUL_ON_BEAT : CONSUL_ON_BEAT_REFUSED;
    return in_trouble ? CONSUL_ON_FAILED : CONSUL_ON_REFUSED;
}

static enum consul_state state_after(const struct consul_talk *talk, enum consul_event event) {
    enum consul_state next = states[talk->state].after[event];
    if (next == CONSUL_UNCHANGED)
        return talk->state;
    /* Without a way to look it up there is no better guess. */
    if (states[next].ask == CONSUL_ASK_LOOKUP && !talk->can_look_up)
        return next == CONSUL_REJECTED ? CONSUL_UNCONFIRMED : states[next].after[CONSUL_ON_UNCLEAR];
    return next;
}

static void hold_back(struct consul_talk *talk, enum consul_event event, int64_t now) {
    int64_t limit = event == CONSUL_ON_REFUSED ? PAUSE_LIMIT : PAUSE_LIMIT_SERVER;
    int doublings = talk->refusals < PAUSE_DOUBLINGS ? talk->refusals : PAUSE_DOUBLINGS;
    int64_t again = now + sooner((int64_t)PAUSE_FIRST << doublings, limit);
    /* After the first refusal of a beat comes a look-up instead. */
    int needs_pause = event != CONSUL_ON_BEAT_REFUSED || talk->refusals;
    talk->refusals++;
    /* Look-ups that fail do not put off for ever the beat that would go without them. */
    if (event == CONSUL_ON_FAILED)
        talk->since = later(talk->since, sooner(again - talk->beat_interval / 2, now));
    else
        talk->since = now;
    if (needs_pause && states[talk->state].ask == CONSUL_ASK_LOOKUP)
        talk->due = again; /* beats go on meanwhile */
    else if (needs_pause)
        talk->retry_at = again;
}

/* The agent answered as it should: the next beat can wait, and anything else can't. */
static void go_on(struct consul_talk *talk, int64_t now) {
    talk->refusals = 0;
    talk->due = now + (states[talk->state].ask == CONSUL_ASK_BEAT ? talk->beat_interval : 0);
}

void consul_transition(struct consul_talk *talk, enum consul_event event, int64_t now) {
    enum consul_state before = talk->state;
    talk->state = state_after(talk, event);
    if (talk->state != before)
        talk->due = sooner(talk->due, now);
    if (talk->state != before || event == CONSUL_ON_BEAT)
        talk->since = now;
    if (event == CONSUL_ON_DEREGISTERED)
        talk->gone_at = now;
    switch (event) {
    case CONSUL_ON_REGISTERED:
    case CONSUL_ON_BEAT:
    case CONSUL_ON_DEREGISTERED:
        go_on(talk, now);
        break;
    case CONSUL_ON_OURS:
        /* A beat that was refused for want of its check is not repeated at once. */
        if (before == CONSUL_REJECTED)
            go_on(talk, now);
        break;
    case CONSUL_ON_OTHERS:
    case CONSUL_ON_UNCLEAR:
        if (talk->state == CONSUL_TAKEN)
            talk->due = now + TAKEN_INTERVAL;
        break;
    case CONSUL_ON_BEAT_REFUSED:
    case CONSUL_ON_REFUSED:
    case CONSUL_ON_FAILED:
        hold_back(talk, event, now);
        break;
    case CONSUL_ON_UNCONFIRMED:
    case CONSUL_ON_SILENCE:
        /* Behind what has been waiting meanwhile. */
        talk->retry_at = now;
        break;
    case CONSUL_ON_STATUS:
        /* News does not wait for the next beat. */
        if (states[talk->state].ask == CONSUL_ASK_BEAT)
            talk->due = 0;
        break;
    case CONSUL_ON_TOKEN:
    case CONSUL_ON_STOP:
        talk->retry_at = 0;
        if (states[talk->state].ask == CONSUL_ASK_LOOKUP)
            talk->due = sooner(talk->due, now);
        break;
    default:
        break;
    }
}

int consul_is_listed(const struct consul_talk *talk) {
    enum consul_ask ask = states[talk->state].ask;
    return talk->state != CONSUL_TAKEN && ask != CONSUL_ASK_NOTHING && ask != CONSUL_ASK_REGISTER;
}

int consul_is_unwanted(const struct consul_talk *talk) {
    return talk->state == CONSUL_UNWANTED || talk->state == CONSUL_UNWANTED_UNVERIFIED;
}
