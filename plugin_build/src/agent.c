/*
 * The conversation with an agent: what to tell it next, and what its answers mean.
 *
 * There is one request at a time to each agent, so that a registration can't overtake a
 * deregistration. Everything here runs in the plugin's thread, and nothing here waits.
 */
#include <uwsgi.h>

#include "consul.h"

/* Milliseconds. */
#define LIST_INTERVAL 500   /* between two looks whether the agent still knows all services */
#define LIST_PAUSE 15000    /* the same where it refuses to list them */
#define TAKEN_INTERVAL 750  /* the same for a service that another process has taken over */
#define SECOND_ATTEMPT 700  /* until a request that hangs is sent again beside the first */
#define REQUEST_LIMIT 10000 /* until a request is given up */
#define SILENCE_NOTED 3000  /* until the log says that the agent does not answer */
#define RETRY_QUICK 100     /* between tries to reach the agent */
#define RETRY_SLOW 400      /* the same after QUICK_RETRIES of them */
#define QUICK_RETRIES 20
#define PAUSE_FIRST 500         /* after a refusal, doubled with each */
#define PAUSE_LIMIT 15000       /* where the request is wrong */
#define PAUSE_LIMIT_SERVER 1000 /* where the agent is in trouble itself */
#define LIST_MISSES 3           /* after which a list is not believed any more */

#define NEVER INT64_MAX

/* ---- what is logged: a trouble when it starts, when its reason changes, when it ends ---- */

static void note_trouble(struct consul_agent *agent, int trouble, const char *reason, int64_t now) {
    if (agent->trouble == trouble)
        return;
    if (!agent->trouble)
        agent->trouble_since = now;
    agent->trouble = trouble;
    uwsgi_log("[consul] no answer from the agent at %s: %s; trying on\n", agent->label, reason);
}

static void note_failure(struct consul_agent *agent, CURL *curl, CURLcode code, int64_t now) {
    long number = 0;
    if (code == CURLE_COULDNT_CONNECT)
        curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &number);
    /* curl's own text has the milliseconds in it: different each time. */
    if (number)
        note_trouble(agent, 1000 + (int)number, strerror((int)number), now);
    else
        note_trouble(agent, (int)code, curl_easy_strerror(code), now);
}

static void end_trouble(struct consul_agent *agent, int64_t now) {
    agent->failures = 0;
    if (!agent->trouble)
        return;
    agent->trouble = 0;
    uwsgi_log("[consul] the agent at %s answers again, after %ld s\n", agent->label,
              (long)((now - agent->trouble_since) / 1000));
}

static void note_refusal(struct consul_agent *agent, const struct consul_attempt *attempt,
                         long http) {
    static const char *const jobs[] = {"",      "list",          "look-up", "registration",
                                       "check", "deregistration"};
    struct consul_service *service = agent->subject;
    char line[160];
    if (service->refusal == http)
        return;
    service->refusal = http;
    consul_answer_line(&attempt->answer, agent->token.text, line, sizeof(line));
    uwsgi_log("[consul] %s: the agent at %s refuses its %s: HTTP %ld %s\n", service->options.id,
              agent->label, jobs[agent->job], http, line);
}

static void end_refusal(struct consul_service *service) {
    service->pause = 0;
    service->refusal = 0;
}

static void note_debug(const struct consul_agent *agent, const struct consul_attempt *attempt,
                       long http, int64_t now) {
    char url[256];
    char line[160];
    if (!agent->debug)
        return;
    consul_url_line(agent->request.url, url, sizeof(url));
    consul_answer_line(&attempt->answer, agent->token.text, line, sizeof(line));
    uwsgi_log("[consul] debug: %s %s: HTTP %ld after %ld ms: %s\n", agent->request.method, url,
              http, (long)(now - agent->job_since), line);
}

/* ---- what is due ---- */

static int64_t beat_interval(const struct consul_service *service) {
    return service->options.ttl * 1000 / 3;
}

/* While uWSGI reloads it beats four times as often: nobody beats while the program starts. */
static int64_t lead(const struct consul_service *service, const struct consul_moment *moment) {
    return moment->reloading ? beat_interval(service) * 3 / 4 : 0;
}

int consul_service_remains(const struct consul_service *service) {
    return service->state == CONSUL_HELD || (service->state == CONSUL_APART && service->in_doubt);
}

static enum consul_job job_while_leaving(const struct consul_service *service) {
    if (!consul_service_remains(service))
        return CONSUL_IDLE;
    return service->verify && service->lookup_url ? CONSUL_LOOKUP : CONSUL_DEREGISTER;
}

static enum consul_job job_for_held(const struct consul_service *service,
                                    const struct consul_moment *moment) {
    if (service->verify && service->lookup_url)
        return CONSUL_LOOKUP;
    if (!service->announced && moment->ready)
        return CONSUL_REGISTER;
    if (service->check == CONSUL_CHECK_TTL && service->beat_urls[service->status] &&
        service->due - lead(service, moment) <= moment->now)
        return CONSUL_BEAT;
    return CONSUL_IDLE;
}

static enum consul_job job_for(const struct consul_service *service,
                               const struct consul_moment *moment) {
    if (service->retry_at > moment->now)
        return CONSUL_IDLE;
    if (moment->leaving || service->leftover)
        return job_while_leaving(service);
    switch (service->state) {
    case CONSUL_APART:
        return moment->ready || !service->options.wait_workers ? CONSUL_REGISTER : CONSUL_IDLE;
    case CONSUL_HELD:
        return job_for_held(service, moment);
    case CONSUL_TAKEN:
        return service->due <= moment->now && service->lookup_url ? CONSUL_LOOKUP : CONSUL_IDLE;
    case CONSUL_LEFT:
        break;
    }
    return CONSUL_IDLE;
}

static size_t count_held(const struct consul_agent *agent, const struct consul_moment *moment) {
    const struct consul_service *service;
    size_t held = 0;
    for (service = moment->services; service; service = service->next)
        held += service->agent == agent && service->state == CONSUL_HELD;
    return held;
}

static void choose_job(struct consul_agent *agent, const struct consul_moment *moment) {
    struct consul_service *service;
    agent->subject = NULL;
    for (service = moment->services; service; service = service->next) {
        if (service->agent != agent)
            continue;
        agent->job = job_for(service, moment);
        if (agent->job != CONSUL_IDLE) {
            agent->subject = service;
            return;
        }
    }
    if (!moment->leaving && agent->list_url && agent->list_misses < LIST_MISSES &&
        agent->list_due <= moment->now && count_held(agent, moment))
        agent->job = CONSUL_LIST;
}

static int64_t sooner(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* When choose_job() will find something, as far as time alone decides. */
static int64_t next_due(const struct consul_agent *agent, const struct consul_moment *moment) {
    const struct consul_service *service;
    int64_t next = NEVER;
    for (service = moment->services; service; service = service->next) {
        if (service->agent != agent)
            continue;
        if (service->retry_at > moment->now)
            next = sooner(next, service->retry_at);
        else if (service->due > moment->now)
            next = sooner(next, service->due);
    }
    if (agent->list_due > moment->now)
        next = sooner(next, agent->list_due);
    return next;
}

/* ---- how a job goes on ---- */

/* What to send for the present job. Returns -1 if there was no memory for it. */
static int build_request(struct consul_agent *agent) {
    struct consul_service *service = agent->subject;
    struct consul_request request = {"PUT", NULL, NULL, agent->owner, 0};
    if (agent->job == CONSUL_LIST || agent->job == CONSUL_LOOKUP) {
        request.method = "GET";
        request.url = agent->job == CONSUL_LIST ? agent->list_url : service->lookup_url;
    } else if (agent->job == CONSUL_REGISTER) {
        consul_registration_build(&agent->body, service);
        request.url = service->register_url;
        request.body = &agent->body;
    } else if (agent->job == CONSUL_BEAT) {
        consul_beat_build(&agent->url, service);
        request.url = agent->url.data;
    } else {
        request.url = service->deregister_url;
    }
    agent->request = request;
    return agent->body.failed || agent->url.failed ? -1 : 0;
}

static int start_attempt(struct consul_agent *agent, struct consul_attempt *attempt,
                         const struct consul_moment *moment) {
    agent->attempt_since = moment->now;
    attempt->agent = agent;
    return consul_attempt_start(moment->multi, attempt, &agent->access, agent->token.text,
                                &agent->request);
}

/* Another token may be welcome where the last one was refused. */
static void refresh_token(struct consul_agent *agent, const struct consul_moment *moment) {
    struct consul_service *service;
    int was_missing = agent->token.missing;
    int changed = consul_token_refresh(&agent->token, &agent->access);
    if (agent->token.missing && !was_missing)
        uwsgi_log("[consul] can't read %s: going on with the last token\n",
                  agent->access.token_file);
    for (service = moment->services; changed && service; service = service->next) {
        if (service->agent == agent)
            service->retry_at = 0;
    }
}

static void stop_attempts(struct consul_agent *agent, CURLM *multi) {
    consul_attempt_stop(multi, &agent->attempts[0]);
    consul_attempt_stop(multi, &agent->attempts[1]);
}

static void fail_job(struct consul_agent *agent, const struct consul_moment *moment) {
    stop_attempts(agent, moment->multi);
    /* It may have arrived all the same. */
    if (agent->job == CONSUL_REGISTER)
        agent->subject->in_doubt = 1;
    agent->job = CONSUL_IDLE;
    agent->failures++;
    agent->retry_at = moment->now + (agent->failures < QUICK_RETRIES ? RETRY_QUICK : RETRY_SLOW);
}

static void start_job(struct consul_agent *agent, const struct consul_moment *moment) {
    agent->job_since = moment->now;
    if (build_request(agent) || start_attempt(agent, &agent->attempts[0], moment)) {
        note_trouble(agent, CURLE_OUT_OF_MEMORY, "out of memory", moment->now);
        consul_text_clear(&agent->body);
        consul_text_clear(&agent->url);
        fail_job(agent, moment);
    }
}

/*
 * A request that hangs is not given up at once: an agent that was stopped or is slow may still
 * answer it. But one that answers new requests only is not waited for either. All requests may
 * be repeated without harm.
 */
static int64_t watch_job(struct consul_agent *agent, const struct consul_moment *moment) {
    if (moment->now - agent->job_since >= SILENCE_NOTED)
        note_trouble(agent, CURLE_OPERATION_TIMEDOUT, "silence", moment->now);
    if (moment->now - agent->job_since >= REQUEST_LIMIT) {
        fail_job(agent, moment);
        return agent->retry_at;
    }
    if (moment->now - agent->attempt_since >= SECOND_ATTEMPT) {
        consul_attempt_stop(moment->multi, &agent->attempts[1]);
        agent->request.fresh = 1;
        (void)start_attempt(agent, &agent->attempts[1], moment);
    }
    return agent->attempt_since + SECOND_ATTEMPT;
}

int64_t consul_agent_step(struct consul_agent *agent, const struct consul_moment *moment) {
    if (agent->job != CONSUL_IDLE)
        return watch_job(agent, moment);
    if (agent->retry_at > moment->now)
        return agent->retry_at;
    refresh_token(agent, moment);
    choose_job(agent, moment);
    if (agent->job == CONSUL_IDLE)
        return next_due(agent, moment);
    start_job(agent, moment);
    return moment->now + SECOND_ATTEMPT;
}

/* ---- what an answer means ---- */

static void pause_after_refusal(struct consul_agent *agent, const struct consul_attempt *attempt,
                                long http, int64_t now) {
    struct consul_service *service = agent->subject;
    int64_t limit = http >= 500 ? PAUSE_LIMIT_SERVER : PAUSE_LIMIT;
    note_refusal(agent, attempt, http);
    service->pause = sooner(service->pause ? service->pause * 2 : PAUSE_FIRST, limit);
    service->retry_at = now + service->pause;
}

static void finish_list(struct consul_agent *agent, size_t found, long http,
                        const struct consul_moment *moment) {
    struct consul_service *service;
    int refused = http >= 400 && http < 500;
    agent->list_due = moment->now + (refused ? LIST_PAUSE : LIST_INTERVAL);
    if (http != 200)
        return;
    if (found >= count_held(agent, moment)) {
        agent->list_misses = 0;
        return;
    }
    agent->list_misses++;
    for (service = moment->services; service; service = service->next) {
        if (service->agent == agent && service->state == CONSUL_HELD)
            service->verify = 1;
    }
}

static void finish_lost(struct consul_service *service, const struct consul_moment *moment) {
    int was_wanted = !moment->leaving && !service->leftover;
    if (service->state == CONSUL_TAKEN)
        uwsgi_log("[consul] %s is free again\n", service->options.id);
    else if (service->state == CONSUL_HELD && was_wanted)
        uwsgi_log("[consul] %s: the agent has lost the registration\n", service->options.id);
    service->state = was_wanted ? CONSUL_APART : CONSUL_LEFT;
    service->announced = 0;
    service->in_doubt = 0;
}

static void finish_taken(struct consul_service *service, int64_t now) {
    if (service->state != CONSUL_TAKEN)
        uwsgi_log("[consul] %s is registered by another process now: left alone\n",
                  service->options.id);
    service->state = CONSUL_TAKEN;
    service->in_doubt = 0;
    service->due = now + TAKEN_INTERVAL;
}

static void finish_lookup(struct consul_service *service, size_t owners, long http,
                          const struct consul_moment *moment) {
    service->verify = 0;
    service->due = sooner(service->due, moment->now);
    if (http == 404) {
        finish_lost(service, moment);
    } else if (http == 200 && !owners) {
        finish_taken(service, moment->now);
    } else if (http == 200 && service->state != CONSUL_HELD) {
        service->state = CONSUL_HELD;
    } else if (http == 200 && service->beat_refused) {
        /* The service is there but its check is not. */
        service->announced = 0;
        service->beat_refused = 0;
    } else if (http != 200 && service->state == CONSUL_TAKEN) {
        service->due = moment->now + TAKEN_INTERVAL;
    }
}

static void finish_registration(struct consul_agent *agent, const struct consul_moment *moment) {
    struct consul_service *service = agent->subject;
    uwsgi_log("[consul] registered %s as %s%s%s\n", service->options.id, service->options.name,
              service->status == CONSUL_PASSING ? "" : ", ",
              service->status == CONSUL_PASSING ? "" : service->note);
    service->state = CONSUL_HELD;
    service->announced = 1;
    service->in_doubt = 0;
    service->due = moment->now + beat_interval(service);
    agent->list_due = moment->now + LIST_INTERVAL;
}

/* An unknown check is 404, and was 500 in older versions. */
static void finish_refused_beat(struct consul_agent *agent, const struct consul_attempt *attempt,
                                long http, const struct consul_moment *moment) {
    struct consul_service *service = agent->subject;
    if (http == 403 || service->beat_refused)
        pause_after_refusal(agent, attempt, http, moment->now);
    if (http == 403)
        return;
    service->beat_refused = 1;
    service->verify = 1;
    if (!service->lookup_url)
        finish_lost(service, moment);
}

static void finish_deregistration(struct consul_service *service, int64_t now) {
    uwsgi_log("[consul] deregistered %s\n", service->options.id);
    service->state = CONSUL_LEFT;
    service->left_at = now;
}

static void finish_job(struct consul_agent *agent, const struct consul_attempt *attempt, long http,
                       const struct consul_moment *moment) {
    struct consul_service *service = agent->subject;
    int accepted = http >= 200 && http < 300;
    int gone = agent->job == CONSUL_DEREGISTER && http == 404;
    if (agent->job == CONSUL_LIST) {
        finish_list(agent, attempt->answer.owners, http, moment);
    } else if (agent->job == CONSUL_LOOKUP) {
        finish_lookup(service, attempt->answer.owners, http, moment);
    } else if (agent->job == CONSUL_BEAT && !accepted) {
        finish_refused_beat(agent, attempt, http, moment);
    } else if (!accepted && !gone) {
        pause_after_refusal(agent, attempt, http, moment->now);
    } else {
        end_refusal(service);
        service->beat_refused = 0;
        if (agent->job == CONSUL_REGISTER)
            finish_registration(agent, moment);
        else if (agent->job == CONSUL_DEREGISTER)
            finish_deregistration(service, moment->now);
        else
            service->due = moment->now + beat_interval(service);
    }
}

void consul_agent_finish(struct consul_agent *agent, struct consul_attempt *attempt, CURLcode code,
                         const struct consul_moment *moment) {
    struct consul_attempt *other = &agent->attempts[attempt == &agent->attempts[0]];
    long http = 0;
    curl_easy_getinfo(attempt->curl, CURLINFO_RESPONSE_CODE, &http);
    consul_attempt_stop(moment->multi, attempt);
    if (code != CURLE_OK || !http) {
        if (other->active)
            return;
        note_failure(agent, attempt->curl, code, moment->now);
        fail_job(agent, moment);
        return;
    }
    stop_attempts(agent, moment->multi);
    end_trouble(agent, moment->now);
    note_debug(agent, attempt, http, moment->now);
    finish_job(agent, attempt, http, moment);
    agent->job = CONSUL_IDLE;
}

/* ---- from outside ---- */

void consul_agent_leave(struct consul_agent *agent, const struct consul_moment *moment) {
    struct consul_service *service;
    agent->retry_at = 0;
    for (service = moment->services; service; service = service->next) {
        service->retry_at = 0;
        service->verify = 1;
    }
    /* A registration under way is waited for, so that it can be taken back. */
    if (agent->job != CONSUL_REGISTER && agent->job != CONSUL_IDLE) {
        stop_attempts(agent, moment->multi);
        agent->job = CONSUL_IDLE;
    }
}

void consul_agent_free(struct consul_agent *agent, CURLM *multi) {
    consul_attempt_free(multi, &agent->attempts[0]);
    consul_attempt_free(multi, &agent->attempts[1]);
    consul_text_free(&agent->body);
    consul_text_free(&agent->url);
    agent->job = CONSUL_IDLE;
}

static void note_status(const struct consul_service *service) {
    if (service->status == CONSUL_PASSING)
        uwsgi_log("[consul] %s is passing again\n", service->options.id);
    else
        uwsgi_log("[consul] %s is %s: %s\n", service->options.id,
                  consul_status_names[service->status], service->note);
}

void consul_service_judge(struct consul_service *service, const struct consul_health *health) {
    enum consul_status before = service->status;
    if (service->leftover)
        return;
    service->status = consul_health_judge(health, service->options.ttl, service->note);
    if (service->check != CONSUL_CHECK_TTL)
        service->status = CONSUL_PASSING;
    if (service->status == before || service->state == CONSUL_APART)
        return;
    note_status(service);
    /* News does not wait for the next beat. */
    if (service->state == CONSUL_HELD)
        service->due = 0;
}
