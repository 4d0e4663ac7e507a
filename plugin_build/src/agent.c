/*
 * One agent: the requests to it, and what the log says about their answers.
 *
 * There is one request at a time to each agent, so that a registration can't overtake a
 * deregistration, and what has been due for longest comes first. Everything here runs in the
 * plugin's thread, and nothing here waits.
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

static void note_refusal(struct consul_agent *agent) {
    static const char *const asks[] = {"",      "list",          "look-up", "registration",
                                       "check", "deregistration"};
    struct consul_service *service = agent->service;
    char line[160];
    if (service->refusal == agent->exchange.http)
        return;
    service->refusal = agent->exchange.http;
    consul_answer_line(agent->exchange.answer, agent->token.text, line, sizeof(line));
    uwsgi_log("[consul] %s: the agent at %s refuses its %s: HTTP %ld %s\n", service->options.id,
              agent->label, asks[agent->ask], service->refusal, line);
}

static void note_debug(const struct consul_agent *agent, int64_t now) {
    const struct consul_exchange *exchange = &agent->exchange;
    char url[256];
    char line[160];
    if (!agent->debug)
        return;
    consul_url_line(exchange->request.url, url, sizeof(url));
    consul_answer_line(exchange->answer, agent->token.text, line, sizeof(line));
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

/* ---- what is due ---- */

static size_t count_listed(const struct consul_agent *agent) {
    const struct consul_service *service = find(agent, agent->services);
    size_t listed = 0;
    for (; service; service = find(agent, service->next))
        listed += (size_t)consul_is_listed(&service->talk);
    return listed;
}

static struct consul_step choose_step(struct consul_agent *agent,
                                      const struct consul_moment *moment) {
    struct consul_service *service = find(agent, agent->services);
    struct consul_step first = {CONSUL_ASK_LIST, agent->list_due};
    agent->service = NULL;
    if (!agent->list_url || agent->list_misses >= LIST_MISSES || !count_listed(agent))
        first.at = CONSUL_NEVER;
    for (; service; service = find(agent, service->next)) {
        struct consul_step step = consul_next_step(&service->talk, moment);
        if (step.at >= first.at ||
            (step.ask == CONSUL_ASK_BEAT && !service->beat_urls[service->status]))
            continue;
        first = step;
        agent->service = service;
    }
    return first;
}

/* ---- how it is asked ---- */

static int start_request(struct consul_agent *agent, int64_t now) {
    struct consul_service *service = agent->service;
    struct consul_request request = {.access = &agent->access,
                                     .token = agent->token.text,
                                     .method = "PUT",
                                     .owner = agent->owner};
    free(agent->built);
    agent->built = NULL;
    if (agent->ask == CONSUL_ASK_LIST || agent->ask == CONSUL_ASK_LOOKUP) {
        request.method = "GET";
        request.url = agent->ask == CONSUL_ASK_LIST ? agent->list_url : service->lookup_url;
    } else if (agent->ask == CONSUL_ASK_REGISTER) {
        request.url = service->register_url;
        request.body = agent->built = consul_registration_build(service);
    } else if (agent->ask == CONSUL_ASK_BEAT) {
        request.url = agent->built = consul_beat_build(service);
    } else {
        request.url = service->deregister_url;
    }
    if (!request.url || (agent->ask == CONSUL_ASK_REGISTER && !request.body))
        return -1;
    return consul_exchange_start(&agent->exchange, agent->multi, &request, now);
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
static int64_t fail(struct consul_agent *agent, int64_t now) {
    if (agent->service)
        tell(agent->service, consul_event_of(agent->ask, 0, 0), now);
    else
        agent->list_due = now; /* behind what has been waiting meanwhile */
    agent->ask = CONSUL_ASK_NOTHING;
    agent->failures++;
    agent->retry_at = now + (agent->failures < QUICK_RETRIES ? RETRY_QUICK : RETRY_SLOW);
    return agent->retry_at;
}

void consul_agent_start(struct consul_agent *agent, CURLM *multi, struct consul_service *services) {
    agent->multi = multi;
    agent->services = services;
    agent->exchange.context = agent;
}

int64_t consul_agent_step(struct consul_agent *agent, const struct consul_moment *moment) {
    int64_t now = moment->now;
    struct consul_step step;
    int64_t until;
    if (agent->ask == CONSUL_ASK_NOTHING) {
        if (agent->retry_at > now)
            return agent->retry_at;
        refresh_token(agent, now);
        step = choose_step(agent, moment);
        if (step.at > now)
            return step.at;
        agent->ask = step.ask;
        if (start_request(agent, now)) {
            note_trouble(agent, CURLE_OUT_OF_MEMORY, "out of memory", now);
            return fail(agent, now);
        }
    }
    if (now - agent->exchange.started_at >= SILENCE_NOTED)
        note_trouble(agent, CURLE_OPERATION_TIMEDOUT, "silence", now);
    until = consul_exchange_watch(&agent->exchange, now);
    return until ? until : fail(agent, now);
}

/* ---- what an answer means ---- */

static void finish_list(struct consul_agent *agent, int64_t now) {
    long http = agent->exchange.http;
    agent->list_due = now + (http >= 400 && http < 500 ? LIST_PAUSE : LIST_INTERVAL);
    if (http != 200)
        return;
    if (agent->exchange.answer->owners >= count_listed(agent)) {
        agent->list_misses = 0;
        return;
    }
    agent->list_misses++;
    tell_all(agent, CONSUL_ON_SHORT_LIST, now);
}

static void finish_service(struct consul_agent *agent, int64_t now) {
    struct consul_service *service = agent->service;
    enum consul_event event =
        consul_event_of(agent->ask, agent->exchange.http, agent->exchange.answer->owners);
    tell(service, event, now);
    if (service->talk.retry_at > now)
        note_refusal(agent);
    else if (!service->talk.refusals)
        service->refusal = 0;
    if (event == CONSUL_ON_REGISTERED)
        agent->list_due = now + LIST_INTERVAL;
}

void consul_agent_finish(struct consul_agent *agent, int64_t now) {
    if (!agent->exchange.http) {
        note_trouble(agent, agent->exchange.error, agent->exchange.reason, now);
        fail(agent, now);
        return;
    }
    end_trouble(agent, now);
    note_debug(agent, now);
    if (agent->service)
        finish_service(agent, now);
    else
        finish_list(agent, now);
    agent->ask = CONSUL_ASK_NOTHING;
}

/* ---- from outside ---- */

void consul_agent_stop(struct consul_agent *agent, int64_t now) {
    agent->retry_at = 0;
    agent->list_misses = LIST_MISSES; /* no list is needed any more */
    tell_all(agent, CONSUL_ON_STOP, now);
    /* A registration under way is waited for, so that it can be taken back. */
    if (agent->ask != CONSUL_ASK_REGISTER) {
        consul_exchange_stop(&agent->exchange);
        agent->ask = CONSUL_ASK_NOTHING;
    }
}

void consul_agent_free(struct consul_agent *agent) {
    consul_exchange_free(&agent->exchange);
    free(agent->built);
    agent->built = NULL;
}

void consul_service_judge(struct consul_service *service, const struct consul_health *health) {
    enum consul_status before = service->status;
    const struct consul_talk *talk = &service->talk;
    if (consul_is_unwanted(talk) || talk->state == CONSUL_GONE)
        return;
    service->status = consul_health_judge(health, service->options.ttl, service->note);
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
