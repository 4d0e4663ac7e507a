/*
 * The conversation alone: every state with every event, and stories with a clock of their own.
 * Prints what is not as expected.
 */
#include "conversation.h"

#include <stdio.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define NEVER CONSUL_NEVER

static int failures;
static const char *story;

static void expect(const char *what, int64_t found, int64_t wanted) {
    if (found == wanted)
        return;
    failures++;
    printf("%s: %s is %lld, not %lld\n", story, what, (long long)found, (long long)wanted);
}

/* ---- every state with every event ---- */

/* A letter for each state: absent, unconfirmed, registered, outdated, rejected, taken, unwanted
 * and gone; a small one is unverified. */
static const char letters[] = "-AURrOoJTwWG";

/*
 * A column for each event: registered, unconfirmed, beat, beat refused; ours, others, nothing,
 * unclear; deregistered, refused, failed, silence; short list, status, token, stop.
 */
static const struct {
    char state;
    const char *after;
    const char *without_look_up; /* where that makes a difference */
} rows[] = {
    {'A', "RUAA AAAA AAAA AAAG", NULL},
    {'U', "RUUU UUUU UUUU UUUw", "RUUU UUUU UUUU UUUW"},
    {'R', "RRRJ RRRR RRRR rROw", "RRRU RRRR RRRR RROW"},
    {'r', "rrrJ RTAR rrrr rrow", "rrrU RTAR rrrr rrOW"},
    {'O', "ROOJ OOOO OOOO oOOw", "ROOU OOOO OOOO OOOW"},
    {'o', "oooJ OTAO oooo ooow", "oooU OTAO oooo oooW"},
    {'J', "JJJJ OTAO JJJJ JJJw", "JJJJ OTAO JJJJ JJJW"},
    {'T', "TTTT OTAT TTTT TTTG", NULL},
    {'w', "Wwww WGGW wwww wwww", NULL},
    {'W', "WWWW WWWW GWWW wWWw", "WWWW WWWW GWWW WWWW"},
    {'G', "WwGG GGGG GGGG GGGG", "WWGG GGGG GGGG GGGG"},
};

static void check_row(char state, const char *after, int can_look_up) {
    int event;
    for (event = 0; event < CONSUL_EVENTS; event++) {
        struct consul_talk talk = {.can_look_up = can_look_up, .beat_interval = 1000};
        char wanted = after[event + event / 4];
        talk.state = (enum consul_state)(strchr(letters, state) - letters);
        consul_transition(&talk, (enum consul_event)event, 5000);
        if (letters[talk.state] == wanted)
            continue;
        failures++;
        printf("%c with event %d, look-up %d: %c, not %c\n", state, event, can_look_up,
               letters[talk.state], wanted);
    }
}

static void check_every_state(void) {
    size_t i;
    story = "every state";
    expect("number of states", LENGTH(rows), CONSUL_STATES - 1);
    expect("number of events", CONSUL_EVENTS, 16);
    for (i = 0; i < LENGTH(rows); i++) {
        check_row(rows[i].state, rows[i].after, 1);
        check_row(rows[i].state, rows[i].without_look_up ? rows[i].without_look_up : rows[i].after,
                  0);
    }
}

/* ---- what is asked in every state ---- */

static const struct {
    char state;
    enum consul_ask starting; /* while the workers are not ready */
    enum consul_ask ready;
} asked[] = {
    {'A', CONSUL_ASK_NOTHING, CONSUL_ASK_REGISTER},
    {'U', CONSUL_ASK_NOTHING, CONSUL_ASK_REGISTER},
    {'R', CONSUL_ASK_BEAT, CONSUL_ASK_BEAT},
    {'r', CONSUL_ASK_LOOKUP, CONSUL_ASK_LOOKUP},
    {'O', CONSUL_ASK_BEAT, CONSUL_ASK_REGISTER},
    {'o', CONSUL_ASK_LOOKUP, CONSUL_ASK_LOOKUP},
    {'J', CONSUL_ASK_LOOKUP, CONSUL_ASK_LOOKUP},
    {'T', CONSUL_ASK_LOOKUP, CONSUL_ASK_LOOKUP},
    {'w', CONSUL_ASK_LOOKUP, CONSUL_ASK_LOOKUP},
    {'W', CONSUL_ASK_DEREGISTER, CONSUL_ASK_DEREGISTER},
    {'G', CONSUL_ASK_NOTHING, CONSUL_ASK_NOTHING},
};

static void check_step(const struct consul_talk *talk, int ready, enum consul_ask ask) {
    struct consul_moment moment = {.now = 5000, .ready = ready};
    struct consul_step step = consul_next_step(talk, &moment, 1);
    expect("time", step.at <= 5000, ask != CONSUL_ASK_NOTHING);
    if (ask != CONSUL_ASK_NOTHING)
        expect("step", step.ask, ask);
}

static void check_every_step(void) {
    static char name[] = "state ?";
    size_t i;
    story = name;
    for (i = 0; i < LENGTH(asked); i++) {
        struct consul_talk talk = {
            .can_look_up = 1, .beat_interval = 1000, .wait_workers = 1, .since = 5000};
        enum consul_ask hasty = asked[i].starting;
        name[sizeof(name) - 2] = asked[i].state;
        talk.state = (enum consul_state)(strchr(letters, asked[i].state) - letters);
        check_step(&talk, 0, asked[i].starting);
        check_step(&talk, 1, asked[i].ready);
        talk.wait_workers = 0;
        check_step(&talk, 0, strchr("AUO", asked[i].state) ? asked[i].ready : hasty);
        talk.retry_at = 5001;
        check_step(&talk, 1, CONSUL_ASK_NOTHING);
    }
}

/* ---- answers ---- */

static const struct {
    enum consul_ask ask;
    long http;
    size_t owners;
    enum consul_event event;
} answers[] = {
    {CONSUL_ASK_REGISTER, 0, 0, CONSUL_ON_UNCONFIRMED},
    {CONSUL_ASK_REGISTER, 200, 0, CONSUL_ON_REGISTERED},
    {CONSUL_ASK_REGISTER, 301, 0, CONSUL_ON_REFUSED},
    {CONSUL_ASK_REGISTER, 400, 0, CONSUL_ON_REFUSED},
    {CONSUL_ASK_REGISTER, 404, 0, CONSUL_ON_REFUSED},
    {CONSUL_ASK_REGISTER, 429, 0, CONSUL_ON_FAILED},
    {CONSUL_ASK_REGISTER, 500, 0, CONSUL_ON_FAILED},
    {CONSUL_ASK_LOOKUP, 0, 0, CONSUL_ON_SILENCE},
    {CONSUL_ASK_LOOKUP, 200, 0, CONSUL_ON_OTHERS},
    {CONSUL_ASK_LOOKUP, 200, 2, CONSUL_ON_OURS},
    {CONSUL_ASK_LOOKUP, 204, 1, CONSUL_ON_UNCLEAR},
    {CONSUL_ASK_LOOKUP, 403, 1, CONSUL_ON_UNCLEAR},
    {CONSUL_ASK_LOOKUP, 404, 1, CONSUL_ON_NOTHING},
    {CONSUL_ASK_LOOKUP, 429, 0, CONSUL_ON_FAILED},
    {CONSUL_ASK_LOOKUP, 500, 1, CONSUL_ON_FAILED},
    {CONSUL_ASK_LOOKUP, 503, 0, CONSUL_ON_FAILED},
    {CONSUL_ASK_BEAT, 0, 0, CONSUL_ON_SILENCE},
    {CONSUL_ASK_BEAT, 200, 0, CONSUL_ON_BEAT},
    {CONSUL_ASK_BEAT, 403, 0, CONSUL_ON_REFUSED},
    {CONSUL_ASK_BEAT, 404, 0, CONSUL_ON_BEAT_REFUSED},
    {CONSUL_ASK_BEAT, 429, 0, CONSUL_ON_FAILED},
    {CONSUL_ASK_BEAT, 500, 0, CONSUL_ON_BEAT_REFUSED},
    {CONSUL_ASK_DEREGISTER, 0, 0, CONSUL_ON_SILENCE},
    {CONSUL_ASK_DEREGISTER, 200, 0, CONSUL_ON_DEREGISTERED},
    {CONSUL_ASK_DEREGISTER, 404, 0, CONSUL_ON_DEREGISTERED},
    {CONSUL_ASK_DEREGISTER, 403, 0, CONSUL_ON_REFUSED},
    {CONSUL_ASK_DEREGISTER, 429, 0, CONSUL_ON_FAILED},
    {CONSUL_ASK_DEREGISTER, 503, 0, CONSUL_ON_FAILED},
};

static void check_answers(void) {
    size_t i;
    for (i = 0; i < LENGTH(answers); i++) {
        static char name[32];
        snprintf(name, sizeof(name), "ask %d, HTTP %ld", (int)answers[i].ask, answers[i].http);
        story = name;
        expect("event", consul_event_of(answers[i].ask, answers[i].http, answers[i].owners),
               answers[i].event);
    }
}

/* ---- stories ---- */

/* An event at a moment, and what is to be done next, and when. */
struct scene {
    int64_t now;
    enum consul_event event;
    char state;
    enum consul_ask ask;
    int64_t at;
};

static void play(const char *name, struct consul_talk talk, const struct scene *scenes,
                 size_t length) {
    size_t i;
    static char title[96];
    for (i = 0; i < length; i++) {
        struct consul_moment moment = {.now = scenes[i].now, .ready = 1};
        struct consul_step step;
        snprintf(title, sizeof(title), "%s, scene %d", name, (int)i + 1);
        story = title;
        consul_transition(&talk, scenes[i].event, scenes[i].now);
        step = consul_next_step(&talk, &moment, 1);
        expect("state", letters[talk.state], scenes[i].state);
        expect("step", step.ask, scenes[i].ask);
        expect("time", step.at, scenes[i].at);
    }
}

#define PLAY(name, start, ...)                                                                     \
    do {                                                                                           \
        static const struct scene scenes[] = {__VA_ARGS__};                                        \
        const struct consul_talk talk = {                                                          \
            .can_look_up = 1, .beat_interval = 10000, .wait_workers = 1, .state = start};          \
        play(name, talk, scenes, LENGTH(scenes));                                                  \
    } while (0)

#define REGISTER CONSUL_ASK_REGISTER
#define BEAT CONSUL_ASK_BEAT
#define LOOKUP CONSUL_ASK_LOOKUP
#define DEREGISTER CONSUL_ASK_DEREGISTER
#define NOTHING CONSUL_ASK_NOTHING

static void play_common(void) {
    PLAY("a life", CONSUL_ABSENT, {100, CONSUL_ON_REGISTERED, 'R', BEAT, 10100},
         {10102, CONSUL_ON_BEAT, 'R', BEAT, 20102}, {12000, CONSUL_ON_STATUS, 'R', BEAT, 0},
         {12001, CONSUL_ON_BEAT, 'R', BEAT, 22001}, {15000, CONSUL_ON_STOP, 'w', LOOKUP, 15000},
         {15001, CONSUL_ON_OURS, 'W', DEREGISTER, 15000},
         {15002, CONSUL_ON_DEREGISTERED, 'G', NOTHING, NEVER});
    PLAY("a reload", CONSUL_OUTDATED_UNVERIFIED, {100, CONSUL_ON_OURS, 'O', REGISTER, 100},
         {101, CONSUL_ON_REGISTERED, 'R', BEAT, 10101});
    PLAY("a reload that lost it", CONSUL_OUTDATED_UNVERIFIED,
         {100, CONSUL_ON_NOTHING, 'A', REGISTER, 0});
    PLAY("dropped by a reload", CONSUL_UNWANTED_UNVERIFIED,
         {100, CONSUL_ON_OURS, 'W', DEREGISTER, 0},
         {101, CONSUL_ON_DEREGISTERED, 'G', NOTHING, NEVER},
         {102, CONSUL_ON_STOP, 'G', NOTHING, NEVER});
    PLAY("lost", CONSUL_ABSENT, {100, CONSUL_ON_REGISTERED, 'R', BEAT, 10100},
         {600, CONSUL_ON_SHORT_LIST, 'r', LOOKUP, 600},
         {601, CONSUL_ON_NOTHING, 'A', REGISTER, 600},
         {602, CONSUL_ON_REGISTERED, 'R', BEAT, 10602});
    PLAY("a list that hides it", CONSUL_ABSENT, {100, CONSUL_ON_REGISTERED, 'R', BEAT, 10100},
         {600, CONSUL_ON_SHORT_LIST, 'r', LOOKUP, 600}, {601, CONSUL_ON_OURS, 'R', BEAT, 600},
         {602, CONSUL_ON_BEAT, 'R', BEAT, 10602});
    PLAY("a lost check", CONSUL_ABSENT, {100, CONSUL_ON_REGISTERED, 'R', BEAT, 10100},
         {10100, CONSUL_ON_BEAT_REFUSED, 'J', LOOKUP, 10100},
         {10101, CONSUL_ON_OURS, 'O', REGISTER, 10101},
         {10102, CONSUL_ON_REGISTERED, 'R', BEAT, 20102});
    PLAY("taken over", CONSUL_ABSENT, {100, CONSUL_ON_REGISTERED, 'R', BEAT, 10100},
         {600, CONSUL_ON_SHORT_LIST, 'r', LOOKUP, 600}, {601, CONSUL_ON_OTHERS, 'T', LOOKUP, 1351},
         {1352, CONSUL_ON_OTHERS, 'T', LOOKUP, 2102}, {2103, CONSUL_ON_UNCLEAR, 'T', LOOKUP, 2853},
         {2854, CONSUL_ON_NOTHING, 'A', REGISTER, 2853},
         {2855, CONSUL_ON_STOP, 'G', NOTHING, NEVER});
}

static void play_trouble(void) {
    PLAY("a wrong token", CONSUL_ABSENT, {0, CONSUL_ON_REFUSED, 'A', REGISTER, 500},
         {500, CONSUL_ON_REFUSED, 'A', REGISTER, 1500},
         {1500, CONSUL_ON_REFUSED, 'A', REGISTER, 3500},
         {3500, CONSUL_ON_REFUSED, 'A', REGISTER, 7500},
         {7500, CONSUL_ON_REFUSED, 'A', REGISTER, 15500},
         {15500, CONSUL_ON_REFUSED, 'A', REGISTER, 30500},
         {30500, CONSUL_ON_REFUSED, 'A', REGISTER, 45500},
         {31000, CONSUL_ON_TOKEN, 'A', REGISTER, 0},
         {31001, CONSUL_ON_REGISTERED, 'R', BEAT, 41001},
         {41001, CONSUL_ON_REFUSED, 'R', BEAT, 41501});
    PLAY("no leader", CONSUL_ABSENT, {0, CONSUL_ON_FAILED, 'A', REGISTER, 500},
         {500, CONSUL_ON_FAILED, 'A', REGISTER, 1500},
         {1500, CONSUL_ON_FAILED, 'A', REGISTER, 2500},
         {2500, CONSUL_ON_REGISTERED, 'R', BEAT, 12500});
    PLAY("beats and look-ups fail", CONSUL_REGISTERED,
         {100, CONSUL_ON_BEAT_REFUSED, 'J', LOOKUP, 0},
         {101, CONSUL_ON_UNCLEAR, 'O', REGISTER, 101}, {102, CONSUL_ON_FAILED, 'O', REGISTER, 1102},
         {1102, CONSUL_ON_REGISTERED, 'R', BEAT, 11102});
    PLAY("silence", CONSUL_ABSENT, {100, CONSUL_ON_UNCONFIRMED, 'U', REGISTER, 100},
         {700, CONSUL_ON_UNCONFIRMED, 'U', REGISTER, 700}, {800, CONSUL_ON_STOP, 'w', LOOKUP, 0},
         {900, CONSUL_ON_SILENCE, 'w', LOOKUP, 900}, {1000, CONSUL_ON_OURS, 'W', DEREGISTER, 900},
         {1100, CONSUL_ON_SILENCE, 'W', DEREGISTER, 1100});
    PLAY("another token", CONSUL_ABSENT, {100, CONSUL_ON_REGISTERED, 'R', BEAT, 10100},
         {200, CONSUL_ON_REFUSED, 'R', BEAT, 10100}, {300, CONSUL_ON_TOKEN, 'O', REGISTER, 300},
         {301, CONSUL_ON_REGISTERED, 'R', BEAT, 10301});
    PLAY("an agent in trouble proves nothing", CONSUL_REGISTERED,
         {100, CONSUL_ON_STOP, 'w', LOOKUP, 0}, {101, CONSUL_ON_FAILED, 'w', LOOKUP, 601},
         {601, CONSUL_ON_FAILED, 'w', LOOKUP, 1601}, {1601, CONSUL_ON_OTHERS, 'G', NOTHING, NEVER});
    PLAY("a reload while the agent is in trouble", CONSUL_OUTDATED_UNVERIFIED,
         {100, CONSUL_ON_FAILED, 'o', LOOKUP, 600}, {600, CONSUL_ON_OURS, 'O', REGISTER, 600});
    PLAY("look-ups that fail put off no beat", CONSUL_OUTDATED_UNVERIFIED,
         {100, CONSUL_ON_FAILED, 'o', LOOKUP, 600}, {600, CONSUL_ON_FAILED, 'o', LOOKUP, 1600},
         {1600, CONSUL_ON_FAILED, 'o', LOOKUP, 2600}, {2600, CONSUL_ON_FAILED, 'o', LOOKUP, 3600},
         {3600, CONSUL_ON_FAILED, 'o', LOOKUP, 4600}, {4600, CONSUL_ON_FAILED, 'o', BEAT, 5600},
         {5600, CONSUL_ON_FAILED, 'o', BEAT, 6600}, {6600, CONSUL_ON_BEAT, 'o', LOOKUP, 6600},
         {6601, CONSUL_ON_FAILED, 'o', LOOKUP, 7101});
    PLAY("look-ups without an answer put off no beat", CONSUL_OUTDATED_UNVERIFIED,
         {100, CONSUL_ON_SILENCE, 'o', LOOKUP, 100}, {4999, CONSUL_ON_SILENCE, 'o', LOOKUP, 4999},
         {5000, CONSUL_ON_SILENCE, 'o', BEAT, 5000}, {5001, CONSUL_ON_BEAT, 'o', LOOKUP, 5001},
         {5002, CONSUL_ON_SILENCE, 'o', LOOKUP, 5002});
    PLAY("an agent at its limit", CONSUL_REGISTERED, {100, CONSUL_ON_FAILED, 'R', BEAT, 600},
         {600, CONSUL_ON_FAILED, 'R', BEAT, 1600}, {1600, CONSUL_ON_BEAT, 'R', BEAT, 11600});
    PLAY("a registration under way at the stop", CONSUL_ABSENT,
         {100, CONSUL_ON_STOP, 'G', NOTHING, NEVER},
         {101, CONSUL_ON_REGISTERED, 'W', DEREGISTER, 101},
         {102, CONSUL_ON_DEREGISTERED, 'G', NOTHING, NEVER});
    PLAY("one that is not answered at the stop", CONSUL_ABSENT,
         {100, CONSUL_ON_STOP, 'G', NOTHING, NEVER}, {101, CONSUL_ON_UNCONFIRMED, 'w', LOOKUP, 101},
         {102, CONSUL_ON_NOTHING, 'G', NOTHING, NEVER});
    PLAY("a pause ends with the stop", CONSUL_REGISTERED, {100, CONSUL_ON_REFUSED, 'R', BEAT, 600},
         {200, CONSUL_ON_STOP, 'w', LOOKUP, 0});
}

/* Until its workers are ready, a program beats for the one before the reload. */
static void check_reloading(void) {
    struct consul_talk talk = {.can_look_up = 1, .beat_interval = 8000, .wait_workers = 1};
    struct consul_moment moment = {.now = 1000};
    story = "reloading";
    talk.state = CONSUL_OUTDATED_UNVERIFIED;
    consul_transition(&talk, CONSUL_ON_OURS, 1000);
    expect("first beat", consul_next_step(&talk, &moment, 1).at, 0);
    consul_transition(&talk, CONSUL_ON_BEAT, 1000);
    expect("next beat", consul_next_step(&talk, &moment, 1).at, 9000);
    moment.reloading = 1;
    expect("next beat before a reload", consul_next_step(&talk, &moment, 1).at, 3000);
    consul_transition(&talk, CONSUL_ON_BEAT_REFUSED, 3000);
    consul_transition(&talk, CONSUL_ON_OURS, 3001);
    moment.reloading = 0;
    expect("beat without its check", consul_next_step(&talk, &moment, 1).at, 11001);
    talk.beat_interval = 0;
    expect("beat where the agent checks", consul_next_step(&talk, &moment, 1).at, NEVER);
}

/* Beats go on where a look-up hangs, or has to wait. */
static void check_hanging(void) {
    struct consul_talk talk = {.can_look_up = 1, .beat_interval = 8000, .state = CONSUL_REGISTERED};
    struct consul_moment moment = {.now = 1000, .ready = 1};
    struct consul_step step;
    story = "a look-up that hangs";
    consul_transition(&talk, CONSUL_ON_BEAT, 1000);
    consul_transition(&talk, CONSUL_ON_SHORT_LIST, 2000);
    step = consul_next_step(&talk, &moment, 1);
    expect("step", step.ask, CONSUL_ASK_LOOKUP);
    step = consul_next_step(&talk, &moment, 0);
    expect("step beside it", step.ask, CONSUL_ASK_BEAT);
    expect("beat", step.at, 6000);
    consul_transition(&talk, CONSUL_ON_BEAT, 6000);
    expect("next beat", consul_next_step(&talk, &moment, 0).at, 10000);
    consul_transition(&talk, CONSUL_ON_BEAT_REFUSED, 10000);
    expect("nothing after a refusal", consul_next_step(&talk, &moment, 0).at, NEVER);
    consul_transition(&talk, CONSUL_ON_OTHERS, 10001);
    expect("nothing for another's", consul_next_step(&talk, &moment, 0).at, NEVER);
}

static void check_questions(void) {
    static const char listed[] = "RrOoJwW", unwanted[] = "wW";
    int state;
    for (state = CONSUL_ABSENT; state < CONSUL_STATES; state++) {
        struct consul_talk talk = {.state = (enum consul_state)state};
        story = &letters[state];
        expect("listed", consul_is_listed(&talk), strchr(listed, letters[state]) != NULL);
        expect("unwanted", consul_is_unwanted(&talk), strchr(unwanted, letters[state]) != NULL);
    }
}

int main(void) {
    check_every_state();
    check_every_step();
    check_answers();
    check_questions();
    play_common();
    play_trouble();
    check_reloading();
    check_hanging();
    return failures != 0;
}
