/*
 * One agent: the requests to it, and what the log says about their answers.
 *
 * What has been due for longest comes first. There is one request after the other, over one
 * connection, unless something is late: then several go at a time. Of one service there is never
 * more than one change under way, so that a registration can't overtake a deregistration. A list
 * and look-ups have places of their own: where they hang, beats go on. Everything here runs in
 * the plugin's thread, and nothing here waits.
 */
#include <uwsgi.h>

#include "consul.h"

/* Milliseconds. */
#define LIST_INTERVAL 500  /* between two looks whether the agent still knows all services */
#define LIST_PAUSE 15000   /* the same where it refuses to list them */
#define SILENCE_NOTED 3000 /* until the log says that the agent does not answer */
#define RETRY_QUICK 100    /* between tries to reach the agent */
#define RETRY_SLOW 400     /* the same after QUICK_RETRIES of them */
#define QUICK_RETRIES 20
#define LIST_MISSES 3 /* after which a list is not believed any more */
#define LATE 200      /* until a request is not waited for any more before the next begins */
#define TOO_LONG 2000 /* after an answer that does not end */
#define LOOKS 2       /* requests at a time that only ask */
#define LOOKS_STOPPING (CONSUL_TASKS / 2)

/* The services of this agent: the next one from here on. */
static struct consul_service *find(const struct consul_agent *agent,
                                   struct consul_service *service) {
    while (service && service->agent != agent)
        service = service->next;
    return service;
}

/* ---- what is logged: a trouble when it starts, when its reason changes, when it ends ---- */

static void note_trouble(struct consul_agent *agent, int trouble, const char *reason, int64_t now) {
    if (agent->trouble == trouble)
        return;
    if (!agent->trouble)
        agent->trouble_since = now;
    agent->trouble = trouble;
    uwsgi_log("[consul] no answer from the agent at %s: %s; trying on\n", agent->label, reason);
}

static void end_trouble(struct consul_agent *agent, int64_t now) {
    agent->failures = 0;
    if (!agent->trouble)
        return;
    agent->trouble = 0;
    uwsgi_log("[consul] the agent at %s answers again, after %ld s\n", agent->label,
              (long)((now - agent->trouble_since) / 1000));
}

static void note_refusal(const struct consul_agent *agent, const struct consul_task *task) {
    static const char *const asks[] = {"",      "list",          "look-up", "registration",
                                       "check", "deregistration"};
    struct consul_service *service = task->service;
    char line[160];
    if (service->refusal == task->exchange.http)
        return;
    service->refusal = task->exchange.http;
    consul_answer_line(task->exchange.answer, task->token, line, sizeof(line));
    uwsgi_log("[consul] %s: the agent at %s refuses its %s: HTTP %ld %s\n", service->options.id,
              agent->label, asks[task->ask], service->refusal, line);
}

static void note_debug(const struct consul_agent *agent, const struct consul_task *task,
                       int64_t now) {
    const struct consul_exchange *exchange = &task->exchange;
    char url[256];
    char line[160];
    if (!agent->debug)
        return;
    consul_url_line(exchange->request.url, url, sizeof(url));
    consul_answer_line(exchange->answer, task->token, line, sizeof(line));
    uwsgi_log("[consul] debug: %s %s: HTTP %ld after %ld ms: %s\n", exchange->request.method, url,
              exchange->http, (long)(now - exchange->started_at), line);
}

static int is_missing(enum consul_state state) {
    return state == CONSUL_ABSENT || state == CONSUL_UNCONFIRMED;
}

static void note_change(const struct consul_service *service, enum consul_state before,
                        enum consul_event event) {
    const char *id = service->options.id;
    int passing = service->status == CONSUL_PASSING;
    if (event == CONSUL_ON_REGISTERED)
        uwsgi_log("[consul] registered %s as %s%s%s\n", id, service->options.name,
                  passing ? "" : ", ", passing ? "" : service->note);
    else if (event == CONSUL_ON_DEREGISTERED)
        uwsgi_log("[consul] deregistered %s\n", id);
    else if (event == CONSUL_ON_OTHERS && before != CONSUL_TAKEN)
        uwsgi_log("[consul] %s is registered by another process now: left alone\n", id);
    else if (is_missing(service->talk.state) && !is_missing(before))
        uwsgi_log(before == CONSUL_TAKEN ? "[consul] %s is free again\n"
                                         : "[consul] %s: the agent has lost the registration\n",
                  id);
}

/* ---- what is under way ---- */

static int only_asks(enum consul_ask ask) {
    return ask == CONSUL_ASK_LIST || ask == CONSUL_ASK_LOOKUP;
}

/* The request of this service, or the list of none, that is a change or only asks. */
static const struct consul_task *find_task(const struct consul_agent *agent,
                                           const struct consul_service *service, int asks) {
    size_t i;
    for (i = 0; i < CONSUL_TASKS; i++) {
        const struct consul_task *task = &agent->tasks[i];
        if (task->ask != CONSUL_ASK_NOTHING && task->service == service &&
            only_asks(task->ask) == asks)
            return task;
    }
    return NULL;
}

static int count_tasks(const struct consul_agent *agent, int asks) {
    int count = 0;
    size_t i;
    for (i = 0; i < CONSUL_TASKS; i++)
        count +=
            agent->tasks[i].ask != CONSUL_ASK_NOTHING && only_asks(agent->tasks[i].ask) == asks;
    return count;
}

int consul_agent_is_busy(const struct consul_agent *agent) {
    return count_tasks(agent, 0) + count_tasks(agent, 1) > 0;
}

static int is_registering(const struct consul_agent *agent) {
    size_t i;
    for (i = 0; i < CONSUL_TASKS; i++) {
        if (agent->tasks[i].ask == CONSUL_ASK_REGISTER)
            return 1;
    }
    return 0;
}

static struct consul_task *free_task(struct consul_agent *agent) {
    size_t i;
    for (i = 0; i < CONSUL_TASKS; i++) {
        if (agent->tasks[i].ask == CONSUL_ASK_NOTHING)
            return &agent->tasks[i];
    }
    return NULL;
}

/* ---- what is due ---- */

/* How many services the list should have, or those of ours with another access. They may be in it
 * too: with other tokens, as far as this one may see them, and where one agent has two names. */
static size_t count_listed(const struct consul_agent *agent, int others) {
    const struct consul_service *service = agent->services;
    size_t listed = 0;
    for (; service; service = service->next)
        listed += (service->agent != agent) == others && consul_is_listed(&service->talk);
    return listed;
}

/* Whether the list is to be asked for, and whether it would be of use. */
static int64_t list_at(const struct consul_agent *agent, int can_look) {
    if (!agent->list_url || !can_look || agent->list_misses >= LIST_MISSES ||
        find_task(agent, NULL, 1) || !count_listed(agent, 0))
        return CONSUL_NEVER;
    /* At a stop it comes before all look-ups: one answer for all. */
    return agent->is_stopping && is_registering(agent) ? CONSUL_NEVER : agent->list_due;
}

/* The list says of all at once what look-ups would say of each, unless it takes its time. */
static int waits_for_list(const struct consul_agent *agent, int64_t now) {
    const struct consul_task *list = find_task(agent, NULL, 1);
    if (!agent->is_stopping || !agent->list_url || agent->list_misses >= LIST_MISSES ||
        is_registering(agent))
        return 0;
    return !list || now - list->exchange.started_at < LATE;
}

struct consul_choice {
    struct consul_step step;
    struct consul_service *service; /* NULL for the list */
};

static struct consul_choice choose(const struct consul_agent *agent,
                                   const struct consul_moment *moment) {
    int can_look = count_tasks(agent, 1) < (agent->is_stopping ? LOOKS_STOPPING : LOOKS);
    struct consul_choice first = {{CONSUL_ASK_LIST, list_at(agent, can_look)}, NULL};
    struct consul_service *service = find(agent, agent->services);
    can_look = can_look && moment->now >= agent->looks_at && !waits_for_list(agent, moment->now);
    for (; service; service = find(agent, service->next)) {
        struct consul_step step =
            consul_next_step(&service->talk, moment, can_look && !find_task(agent, service, 1));
        if (step.at >= first.step.at || (!only_asks(step.ask) && find_task(agent, service, 0)) ||
            (step.ask == CONSUL_ASK_BEAT && !service->beat_urls[service->status]))
            continue;
        first = (struct consul_choice){step, service};
    }
    return first;
}

/* When it may be started, beside what is under way. */
static int64_t start_at(const struct consul_agent *agent, int64_t due) {
    size_t i;
    for (i = 0; i < CONSUL_TASKS && !agent->is_stopping; i++) {
        const struct consul_task *task = &agent->tasks[i];
        if (task->ask != CONSUL_ASK_NOTHING && task->exchange.started_at + LATE > due)
            due = due == CONSUL_NEVER ? due : task->exchange.started_at + LATE;
    }
    return due;
}

/* ---- how it is asked ---- */

static int start_request(struct consul_agent *agent, struct consul_task *task, int64_t now) {
    struct consul_service *service = task->service;
    struct consul_request request = {
        .access = &agent->access, .token = task->token, .method = "PUT", .owner = agent->owner};
    free(task->built);
    task->built = NULL;
    memcpy(task->token, agent->token.text, sizeof(task->token));
    if (only_asks(task->ask)) {
        request.method = "GET";
        request.url = task->ask == CONSUL_ASK_LIST ? agent->list_url : service->lookup_url;
    } else if (task->ask == CONSUL_ASK_REGISTER) {
        request.url = service->register_url;
        request.body = task->built = consul_registration_build(service);
    } else if (task->ask == CONSUL_ASK_BEAT) {
        request.url = task->built = consul_beat_build(service);
    } else {
        request.url = service->deregister_url;
    }
    if (!request.url || (task->ask == CONSUL_ASK_REGISTER && !request.body))
        return -1;
    return consul_exchange_start(&task->exchange, agent->multi, &request, now);
}

static void tell(struct consul_service *service, enum consul_event event, int64_t now) {
    enum consul_state before = service->talk.state;
    consul_transition(&service->talk, event, now);
    note_change(service, before, event);
}

static void tell_all(struct consul_agent *agent, enum consul_event event, int64_t now) {
    struct consul_service *service = find(agent, agent->services);
    for (; service; service = find(agent, service->next))
        tell(service, event, now);
}

/* Another token may be welcome where the last one was refused. */
static void refresh_token(struct consul_agent *agent, int64_t now) {
    int was_missing = agent->token.missing;
    if (consul_token_refresh(&agent->token, &agent->access))
        tell_all(agent, CONSUL_ON_TOKEN, now);
    if (agent->token.missing && !was_missing)
        uwsgi_log("[consul] can't read %s: going on with the last token\n",
                  agent->access.token_file);
}

/* There was no answer. */
static void fail(struct consul_agent *agent, struct consul_task *task, int64_t now) {
    int64_t pause = ++agent->failures < QUICK_RETRIES ? RETRY_QUICK : RETRY_SLOW;
    if (task->exchange.too_long)
        pause = TOO_LONG;
    if (task->service) {
        tell(task->service, consul_event_of(task->ask, 0, 0), now);
        /* Beats do not wait for a look-up's answer that does not end, nor look-ups for a beat's. */
        if (task->exchange.too_long && only_asks(task->ask))
            agent->looks_at = now + pause;
        else
            agent->retry_at = now + pause;
        if (task->ask == CONSUL_ASK_BEAT)
            task->service->talk.since = now;
    } else {
        agent->list_due = now + pause;
        agent->list_misses = agent->is_stopping ? LIST_MISSES : agent->list_misses;
    }
    task->exchange.too_long = 0;
    task->ask = CONSUL_ASK_NOTHING;
}

void consul_agent_start(struct consul_agent *agent, CURLM *multi, struct consul_service *services,
                        int64_t now) {
    struct consul_service *service;
    size_t i;
    agent->multi = multi;
    agent->services = services;
    for (i = 0; i < CONSUL_TASKS; i++) {
        agent->tasks[i].exchange.context = &agent->tasks[i];
        agent->tasks[i].agent = agent;
    }
    for (service = find(agent, services); service; service = find(agent, service->next))
        service->talk.since = service->talk.due = now;
}

static void start_task(struct consul_agent *agent, const struct consul_choice *choice,
                       int64_t now) {
    struct consul_task *task = free_task(agent);
    task->ask = choice->step.ask;
    task->service = choice->service;
    if (task->ask == CONSUL_ASK_LIST) {
        agent->list_ours = count_listed(agent, 0);
        agent->list_others = count_listed(agent, 1);
    }
    if (!start_request(agent, task, now))
        return;
    note_trouble(agent, CURLE_OUT_OF_MEMORY, "out of memory", now);
    fail(agent, task, now);
}

/* Makes second attempts; returns when to come back. */
static int64_t watch_tasks(struct consul_agent *agent, int64_t now) {
    int64_t until = CONSUL_NEVER;
    size_t i;
    for (i = 0; i < CONSUL_TASKS; i++) {
        struct consul_task *task = &agent->tasks[i];
        int64_t next;
        if (task->ask == CONSUL_ASK_NOTHING)
            continue;
        /* Not where only one kind of request hangs. */
        if (now - task->exchange.started_at >= SILENCE_NOTED &&
            now - agent->answered_at >= SILENCE_NOTED)
            note_trouble(agent, CURLE_OPERATION_TIMEDOUT, "silence", now);
        next = consul_exchange_watch(&task->exchange, now);
        if (!next) {
            fail(agent, task, now);
            next = now + RETRY_QUICK;
        }
        if (next < until)
            until = next;
    }
    return until;
}

/* Returns when something else is due. */
static int64_t start_tasks(struct consul_agent *agent, const struct consul_moment *moment) {
    int64_t now = moment->now;
    while (free_task(agent) && agent->retry_at <= now) {
        struct consul_choice choice;
        int64_t at;
        /* More at a time are no help where nothing is answered. */
        if (!agent->is_stopping && count_tasks(agent, 0) + count_tasks(agent, 1) > LOOKS &&
            now - agent->answered_at > SILENCE_NOTED)
            return CONSUL_NEVER;
        /* What is registered is registered with the token that it began with. */
        if (!is_registering(agent))
            refresh_token(agent, now);
        choice = choose(agent, moment);
        at = start_at(agent, choice.step.at);
        if (at > now)
            return at;
        start_task(agent, &choice, now);
    }
    return agent->retry_at > now ? agent->retry_at : CONSUL_NEVER;
}

int64_t consul_agent_step(struct consul_agent *agent, const struct consul_moment *moment) {
    int64_t due = start_tasks(agent, moment);
    int64_t watched = watch_tasks(agent, moment->now);
    return due < watched ? due : watched;
}

/* ---- what an answer means ---- */

/* Where all that may be ours is in it, and no more, nothing else has to be looked up before it
 * goes. One more may be an agent of two names, where it hides that another one is missing. */
static void use_list_at_stop(struct consul_agent *agent, size_t found, int64_t now) {
    struct consul_service *service = find(agent, agent->services);
    if (found != agent->list_ours + agent->list_others ||
        found != count_listed(agent, 0) + count_listed(agent, 1))
        return;
    for (; service; service = find(agent, service->next)) {
        if (service->talk.state == CONSUL_UNWANTED_UNVERIFIED)
            tell(service, CONSUL_ON_OURS, now);
    }
}

static void finish_list(struct consul_agent *agent, const struct consul_task *task, int64_t now) {
    long http = task->exchange.http;
    size_t found = task->exchange.answer->owners;
    size_t more = found > agent->list_ours ? found - agent->list_ours : 0;
    size_t others =
        agent->list_visible < agent->list_others ? agent->list_visible : agent->list_others;
    struct consul_service *service = find(agent, agent->services);
    agent->list_due =
        now + (http >= 400 && http < 500 && http != CONSUL_AT_LIMIT ? LIST_PAUSE : LIST_INTERVAL);
    if (agent->is_stopping) {
        agent->list_misses = LIST_MISSES;
        if (http == 200)
            use_list_at_stop(agent, found, now);
        return;
    }
    if (http != 200)
        return;
    agent->list_visible = more;
    if (found >= agent->list_ours + others) {
        agent->list_misses = 0;
        return;
    }
    agent->list_misses++;
    /* Of what is changed just now the next list will tell. */
    for (; service; service = find(agent, service->next)) {
        if (!find_task(agent, service, 0))
            tell(service, CONSUL_ON_SHORT_LIST, now);
    }
}

/* Another token of this place may take back what a reload's configuration does not have: its own
 * may be revoked by now. */
static void move_leftover(struct consul_service *service, int64_t now) {
    struct consul_agent *agent = service->agent;
    struct consul_agent *next = agent;
    do
        next = next->next ? next->next : agent->first;
    while (next != agent && !consul_same_place(&next->access, &agent->access));
    if (next == agent)
        return;
    service->agent = next;
    tell(service, CONSUL_ON_SHORT_LIST, now); /* it may see whose it is */
}

static void finish_service(struct consul_agent *agent, const struct consul_task *task,
                           int64_t now) {
    struct consul_service *service = task->service;
    enum consul_event event =
        consul_event_of(task->ask, task->exchange.http, task->exchange.answer->owners);
    tell(service, event, now);
    if (event == CONSUL_ON_REFUSED || event == CONSUL_ON_FAILED ||
        (event == CONSUL_ON_BEAT_REFUSED && service->talk.refusals > 1))
        note_refusal(agent, task);
    else if (!service->talk.refusals)
        service->refusal = 0;
    if (event == CONSUL_ON_REGISTERED)
        agent->list_due = now + LIST_INTERVAL;
    if (event == CONSUL_ON_REFUSED && task->exchange.http == 403 && !service->options.name)
        move_leftover(service, now);
}

void consul_task_finish(struct consul_task *task, int64_t now) {
    struct consul_agent *agent = task->agent;
    if (!task->exchange.http) {
        note_trouble(agent, task->exchange.error, task->exchange.reason, now);
        fail(agent, task, now);
        return;
    }
    agent->answered_at = now;
    end_trouble(agent, now);
    note_debug(agent, task, now);
    if (task->service)
        finish_service(agent, task, now);
    else
        finish_list(agent, task, now);
    task->ask = CONSUL_ASK_NOTHING;
}

/* ---- from outside ---- */

void consul_agent_stop(struct consul_agent *agent, int64_t now) {
    size_t i;
    agent->retry_at = 0;
    agent->is_stopping = 1;
    agent->list_misses = 0; /* once more, for the proof */
    agent->list_due = 0;
    tell_all(agent, CONSUL_ON_STOP, now);
    for (i = 0; i < CONSUL_TASKS; i++) {
        /* A registration under way is waited for, so that it can be taken back. */
        if (agent->tasks[i].ask == CONSUL_ASK_REGISTER || agent->tasks[i].ask == CONSUL_ASK_NOTHING)
            continue;
        consul_exchange_stop(&agent->tasks[i].exchange);
        agent->tasks[i].ask = CONSUL_ASK_NOTHING;
    }
}

void consul_agent_free(struct consul_agent *agent) {
    size_t i;
    for (i = 0; i < CONSUL_TASKS; i++) {
        consul_exchange_free(&agent->tasks[i].exchange);
        free(agent->tasks[i].built);
        agent->tasks[i].built = NULL;
        agent->tasks[i].ask = CONSUL_ASK_NOTHING;
    }
}

void consul_service_judge(struct consul_service *service, const struct consul_health *health) {
    enum consul_status before = service->status;
    const struct consul_talk *talk = &service->talk;
    if (consul_is_unwanted(talk) || talk->state == CONSUL_GONE)
        return;
    service->status = consul_health_judge(health, service->options.ttl,
                                          service->options.stuck_after, service->note);
    if (service->check != CONSUL_CHECK_TTL)
        service->status = CONSUL_PASSING;
    if (service->status == before || is_missing(talk->state))
        return;
    if (service->status == CONSUL_PASSING)
        uwsgi_log("[consul] %s is passing again\n", service->options.id);
    else
        uwsgi_log("[consul] %s is %s: %s\n", service->options.id,
                  consul_status_names[service->status], service->note);
    tell(service, CONSUL_ON_STATUS, health->now);
}
