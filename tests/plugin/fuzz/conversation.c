/*
 * Any story between the conversation and an agent that refuses, fails, keeps silent and changes
 * behind its back. Afterwards, with an agent that answers again, it must come to rest: with what
 * was wanted, and without asking all the time.
 */
#include "conversation.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum holds { NOTHING, OURS, OLD, OTHERS };
enum mood { HONEST, FORBIDS, FAILS, IS_DEAF, IS_MUTE, IS_AT_LIMIT, MOODS };

static const long statuses[MOODS] = {
    [FORBIDS] = 403, [FAILS] = 500, [IS_AT_LIMIT] = 429}; /* 0: no answer */

#define NO_WAIT_LIMIT 12 /* requests in a row */
#define LIST_INTERVAL 500
#define LONGEST_PAUSE 1010 /* after a look-up that failed */
#define REST 100000        /* more than the longest pause and the longest time between two beats */

static struct {
    struct consul_talk talk;
    struct consul_moment moment;
    enum holds holds;
    int has_check;
    int stopped;
    int excused; /* it can't know whose registration it takes back */
    int in_a_row;
    int64_t heard_at; /* the last beat, or what one may wait after */
} world;

static void demand(int condition) {
    if (!condition)
        abort();
}

static int is_unverified(void) {
    return world.talk.state == CONSUL_REGISTERED_UNVERIFIED ||
           world.talk.state == CONSUL_OUTDATED_UNVERIFIED;
}

static void happen(enum consul_event event) {
    enum consul_state before = world.talk.state;
    consul_transition(&world.talk, event, world.moment.now);
    demand(world.talk.state > CONSUL_UNCHANGED && world.talk.state < CONSUL_STATES);
    if (world.talk.state != before || event == CONSUL_ON_TOKEN)
        world.heard_at = world.moment.now;
    demand(!world.stopped || world.talk.state == CONSUL_GONE || consul_is_unwanted(&world.talk));
}

static void stop(void) {
    world.stopped = 1;
    happen(CONSUL_ON_STOP);
}

/* The agent does what it is asked; returns the HTTP status. */
static long obey(enum consul_ask ask) {
    long http = 200;
    switch (ask) {
    case CONSUL_ASK_REGISTER:
        demand(!world.stopped);
        world.holds = OURS;
        world.has_check = 1;
        break;
    case CONSUL_ASK_BEAT:
        http = world.holds != NOTHING && world.has_check ? 200 : 404;
        break;
    case CONSUL_ASK_LOOKUP:
        demand(world.talk.can_look_up);
        http = world.holds == NOTHING ? 404 : 200;
        break;
    case CONSUL_ASK_DEREGISTER:
        demand(world.holds != OTHERS || world.excused);
        http = world.holds == NOTHING ? 404 : 200;
        world.holds = NOTHING;
        break;
    default:
        abort();
    }
    return http;
}

static void note_wait(int64_t at, enum mood mood) {
    if (at > world.moment.now || mood == IS_DEAF || mood == IS_MUTE)
        world.in_a_row = 0;
    else
        demand(++world.in_a_row <= NO_WAIT_LIMIT);
    if (at > world.moment.now)
        world.moment.now = at;
}

/* However often look-ups fail, the beats that go without them are not put off for ever. */
static void note_beat(enum consul_ask ask) {
    if (ask == CONSUL_ASK_BEAT || world.heard_at < world.talk.retry_at)
        world.heard_at = world.moment.now;
    else if (ask == CONSUL_ASK_LOOKUP && is_unverified() && world.talk.beat_interval)
        demand(world.moment.now - world.heard_at <= world.talk.beat_interval / 2 + LONGEST_PAUSE);
}

/* One request, if one will ever be made; returns whether it was. */
static int converse(enum mood mood, int stop_meanwhile, int can_look) {
    struct consul_step step = consul_next_step(&world.talk, &world.moment, can_look);
    int ours;
    long http = 0;
    if (step.at == CONSUL_NEVER)
        return 0;
    note_wait(step.at, mood);
    note_beat(step.ask);
    ours = world.holds == OURS || world.holds == OLD;
    if (mood == HONEST || mood == IS_MUTE)
        http = obey(step.ask);
    if (mood != HONEST)
        http = statuses[mood];
    world.excused |= step.ask == CONSUL_ASK_LOOKUP && mood == FORBIDS;
    world.moment.now++;
    if (stop_meanwhile && step.ask == CONSUL_ASK_REGISTER)
        stop();
    happen(consul_event_of(step.ask, http, (size_t)ours));
    return 1;
}

static void list(void) {
    int ours = world.holds == OURS || world.holds == OLD;
    if (consul_is_listed(&world.talk) && !ours && world.talk.can_look_up)
        happen(CONSUL_ON_SHORT_LIST);
}

static void take_over(void) {
    world.holds = OTHERS;
    world.has_check = 1;
    world.excused |= world.talk.state == CONSUL_UNWANTED || world.talk.state == CONSUL_UNCONFIRMED;
}

static void act(uint8_t what) {
    world.in_a_row = what % 16 < 8 ? world.in_a_row : 0;
    switch (what % 16) {
    case 8:
        world.holds = NOTHING;
        break;
    case 9:
        world.has_check = 0;
        break;
    case 10:
        take_over();
        break;
    case 11:
        list();
        break;
    case 12:
        world.moment.ready |= what & 16;
        world.moment.reloading ^= (what & 32) != 0;
        break;
    case 13:
        happen(what & 16 ? CONSUL_ON_STATUS : CONSUL_ON_TOKEN);
        break;
    case 14:
        world.moment.now += (int64_t)what * 8;
        break;
    case 15:
        stop();
        break;
    default:
        converse((enum mood)(what / 16 % MOODS), what % 8 == 7, what % 8 != 6);
    }
}

static void begin(uint8_t how) {
    static const enum consul_state starts[] = {CONSUL_ABSENT, CONSUL_OUTDATED_UNVERIFIED,
                                               CONSUL_UNWANTED_UNVERIFIED, CONSUL_ABSENT};
    world.talk = (struct consul_talk){.state = starts[how % 4],
                                      .wait_workers = (how & 4) != 0,
                                      .can_look_up = (how & 8) == 0 || how % 4 != 0,
                                      .beat_interval = how & 16 ? 0 : 400 << (how / 32)};
    world.moment = (struct consul_moment){.now = 1000};
    world.talk.since = world.talk.due = world.heard_at = world.moment.now;
    world.holds = how % 4 == 0 ? NOTHING : how % 4 == 3 ? OTHERS : OLD;
    world.has_check = world.holds != NOTHING;
    world.stopped = how % 4 == 2; /* to this service it is the same */
    world.excused = !world.talk.can_look_up;
    world.in_a_row = 0;
}

static void come_to_rest(void) {
    int64_t end;
    int requests = 0;
    world.moment.ready = 1;
    world.moment.reloading = 0;
    for (end = world.moment.now + REST; world.moment.now < end; list()) {
        int64_t next = world.moment.now + LIST_INTERVAL;
        while (consul_next_step(&world.talk, &world.moment, 1).at <= next) {
            converse(HONEST, 0, 1);
            requests++;
        }
        world.moment.now = next > world.moment.now ? next : world.moment.now;
    }
    demand(requests < 4 * REST / 400);
}

static void judge(void) {
    if (world.stopped) {
        demand(world.talk.state == CONSUL_GONE);
        demand(world.holds == NOTHING || world.holds == OTHERS);
        return;
    }
    demand(world.talk.state == CONSUL_REGISTERED || world.talk.state == CONSUL_TAKEN);
    if (world.talk.state == CONSUL_TAKEN)
        demand(world.holds == OTHERS);
    else if (world.talk.can_look_up)
        demand(world.holds == OURS && (world.has_check || !world.talk.beat_interval));
    else if (world.talk.beat_interval)
        demand(world.holds != NOTHING && world.has_check);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t i;
    if (!size || size > 300)
        return 0;
    begin(data[0]);
    for (i = 1; i < size; i++)
        act(data[i]);
    come_to_rest();
    judge();
    return 0;
}
