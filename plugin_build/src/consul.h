/* What the files of the consul plugin share. */
#ifndef CONSUL_PLUGIN_H
#define CONSUL_PLUGIN_H

#include <curl/curl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- text.c: text that grows, and what outside values become inside JSON and URLs ---- */

/* Once an addition failed for lack of memory the rest is dropped: look at `failed` at the end. */
struct consul_text {
    char *data;
    size_t length;
    size_t size;
    int failed;
};

void consul_text_add(struct consul_text *text, const char *data, size_t length);
void consul_text_say(struct consul_text *text, const char *string);
void consul_text_number(struct consul_text *text, long number);
void consul_text_json(struct consul_text *text, const char *data, size_t length);
void consul_text_url(struct consul_text *text, const char *string);
void consul_text_clear(struct consul_text *text);
void consul_text_free(struct consul_text *text);
/* A URL as far as a log may show it: without credentials and without its query. */
void consul_url_line(const char *url, char *line, size_t size);

/* ---- options.c: what a consul-register line says ---- */

#define CONSUL_ERROR_SIZE 512

enum consul_check { CONSUL_CHECK_TTL, CONSUL_CHECK_HTTP, CONSUL_CHECK_TCP };

/* Strings are NULL and numbers negative where the line does not say. */
struct consul_options {
    char *name;
    char *id;
    char *address;
    char *tags;
    char *meta;
    char *token;
    char *token_file;
    char *url;
    char *register_url;
    char *deregister_url;
    char *check_url;
    char *check;
    char *ca_file;
    char *cert_file;
    char *key_file;
    long port;
    long ttl;
    long interval;
    long timeout;
    long deregister_after;
    long drain;
    long weight;
    long wait_workers;
    long ssl_no_verify;
    long debug;

    char *storage; /* the strings point into it */
};

/* Returns 0, or -1 and one line in `error`. Nothing secret gets into that line. */
int consul_options_parse(struct consul_options *options, const char *line, char *error);
void consul_options_free(struct consul_options *options);
enum consul_check consul_options_check(const struct consul_options *options);

/* ---- settings.c: the options, completed from the environment and checked together ---- */

/* The owner of a registration, as hexadecimal digits in its metadata. */
#define CONSUL_OWNER_KEY "uwsgi_owner"
#define CONSUL_OWNER_LENGTH 32

struct consul_agent;
struct consul_plugin;
struct consul_service;

/* Returns 0, or -1 and one line in `error`. */
int consul_settings_complete(struct consul_plugin *plugin, char *error);
/* Lets the program that a reload starts in this process know what this one registered. */
int consul_settings_bequeath(const struct consul_plugin *plugin);
int consul_settings_has_legacy(void);

/* ---- answer.c: what is read from the agent's answers ---- */

#define CONSUL_EXCERPT_SIZE 512

/* Any answer is reduced, as it comes in, to how often it names an owner and how it begins. */
struct consul_answer {
    const char *owner;
    size_t matched;
    size_t owners;
    size_t length;
    size_t excerpt_length;
    char excerpt[CONSUL_EXCERPT_SIZE];
};

void consul_answer_start(struct consul_answer *answer, const char *owner);
void consul_answer_feed(struct consul_answer *answer, const char *data, size_t length);
/* The beginning of the answer, fit for a log line. */
void consul_answer_line(const struct consul_answer *answer, const char *secret, char *line,
                        size_t size);

/* ---- request.c: HTTP requests that never block ---- */

#define CONSUL_TOKEN_SIZE 512

/* How to reach an agent: the same for all services that agree in it. */
struct consul_access {
    const char *url;    /* where the API is, without a slash at the end; NULL if not known */
    const char *socket; /* the path of a unix socket, or NULL */
    const char *token;
    const char *token_file;
    const char *ca_file;
    const char *cert_file;
    const char *key_file;
    int ssl_no_verify;
};

/* A token that comes from a file is read again when the file changes. */
struct consul_token {
    char text[CONSUL_TOKEN_SIZE];
    int64_t stamp[4];
    int missing;
};

/* Returns 1 if the token is another one than before. */
int consul_token_refresh(struct consul_token *token, const struct consul_access *access);

struct consul_attempt {
    CURL *curl;
    struct curl_slist *headers;
    struct consul_answer answer;
    struct consul_agent *agent;
    int active;
};

struct consul_request {
    const char *method;
    const char *url;
    const struct consul_text *body; /* or NULL */
    const char *owner;              /* to count in the answer */
    int fresh;                      /* over a new connection */
};

int consul_attempt_start(CURLM *multi, struct consul_attempt *attempt,
                         const struct consul_access *access, const char *token,
                         const struct consul_request *request);
void consul_attempt_stop(CURLM *multi, struct consul_attempt *attempt);
void consul_attempt_free(CURLM *multi, struct consul_attempt *attempt);

/* ---- health.c: how the workers are ---- */

enum consul_status { CONSUL_PASSING, CONSUL_WARNING, CONSUL_CRITICAL };
#define CONSUL_STATUSES 3
#define CONSUL_NOTE_SIZE 128

/* Moments are milliseconds of the monotonic clock. */
struct consul_health {
    int64_t now;
    int workers; /* that are meant to run */
    int alive;
    int ready;
    int busy;       /* ready ones without a free core */
    int with_app;   /* ready ones with an application */
    int64_t oldest; /* how long the oldest request runs */
    int waiting;    /* connections in the listen queues */
    int cheap;
    int queue_full;
    int needs_app;
    int64_t ready_at;    /* when a worker was last ready */
    int64_t stuck_since; /* when no worker could make progress any more, or 0 */
    int64_t queue_free_at;
    uint64_t requests;
    uint64_t spawns;
    uint64_t spawns_when_ready;
};

int64_t consul_now(void);
void consul_health_start(struct consul_health *health);
void consul_health_look(struct consul_health *health);
/* Whether every worker that is meant to run accepts requests. */
int consul_health_is_ready(const struct consul_health *health);
/* The status for a check with this ttl, and a sentence about it. */
enum consul_status consul_health_judge(const struct consul_health *health, long ttl, char *note);

/* ---- agent.c: the conversation with an agent ---- */

enum consul_state {
    CONSUL_APART, /* not registered by this process */
    CONSUL_HELD,  /* registered, and ours */
    CONSUL_TAKEN, /* registered by another process */
    CONSUL_LEFT   /* deregistered, as uWSGI stops */
};

struct consul_service {
    struct consul_options options;
    struct consul_agent *agent;
    char *lookup_url; /* NULL where it can't be known */
    char *register_url;
    char *deregister_url;
    char *beat_urls[CONSUL_STATUSES]; /* NULL where there is no way to say that */
    enum consul_check check;
    int inherited; /* registered by this process before a reload */
    int leftover;  /* of the configuration before a reload: only to be deregistered */

    /* The thread's. */
    enum consul_state state;
    int announced;    /* this program registered it, not one before a reload */
    int in_doubt;     /* a registration was sent, but not confirmed */
    int verify;       /* the agent is to be asked whether it is still ours */
    int beat_refused; /* the last time */
    int64_t due;      /* the next beat, or the next look at another's registration */
    int64_t retry_at; /* nothing before this, after a refusal */
    int64_t pause;    /* between tries, grows with each refusal */
    int64_t left_at;  /* when it was deregistered */
    long refusal;     /* the HTTP status that was logged */
    enum consul_status status;
    char note[CONSUL_NOTE_SIZE];

    struct consul_service *next;
};

enum consul_job {
    CONSUL_IDLE,
    CONSUL_LIST,
    CONSUL_LOOKUP,
    CONSUL_REGISTER,
    CONSUL_BEAT,
    CONSUL_DEREGISTER
};

/* One agent and, one after the other, the requests to it. */
struct consul_agent {
    struct consul_access access;
    char *list_url; /* all services that are ours; NULL where it can't be known */
    char label[128];
    const char *owner;
    int debug;

    /* The thread's. A request that is not answered soon gets a second attempt beside it. */
    struct consul_attempt attempts[2];
    struct consul_token token;
    struct consul_request request;
    struct consul_text url;
    struct consul_text body;
    enum consul_job job;
    struct consul_service *subject;
    int64_t job_since;
    int64_t attempt_since;
    int64_t list_due;
    int list_misses; /* how often the list lacked what a look-up then found */
    int64_t retry_at;
    int failures;
    int trouble; /* what was logged, 0 if all is well */
    int64_t trouble_since;

    struct consul_agent *next;
};

/* What the thread knows when it lets an agent go on. */
struct consul_moment {
    CURLM *multi;
    struct consul_service *services;
    int64_t now;
    int ready;
    int leaving;
    int reloading;
};

/* Starts what is due; returns when to come back. */
int64_t consul_agent_step(struct consul_agent *agent, const struct consul_moment *moment);
/* An attempt ended, with an answer or not. */
void consul_agent_finish(struct consul_agent *agent, struct consul_attempt *attempt, CURLcode code,
                         const struct consul_moment *moment);
/* From now on only deregistrations count. */
void consul_agent_leave(struct consul_agent *agent, const struct consul_moment *moment);
void consul_agent_free(struct consul_agent *agent, CURLM *multi);
/* Whether the agent may still hold a registration of ours that uWSGI's stop takes back. */
int consul_service_remains(const struct consul_service *service);
/* The workers' health, as this service's check is to tell it. */
void consul_service_judge(struct consul_service *service, const struct consul_health *health);

/* ---- registration.c: what an agent is sent ---- */

extern const char *const consul_status_names[CONSUL_STATUSES];

void consul_registration_build(struct consul_text *json, const struct consul_service *service);
void consul_beat_build(struct consul_text *url, const struct consul_service *service);

/* ---- stop.c: holding uWSGI's stop back until clients had time to look elsewhere ---- */

/* In the master. A stop is not held back for longer than `patience`; 0 is not at all. */
void consul_stop_prepare(int wake_fd, int64_t patience);
void consul_stop_cycle(int may_stop);
/* In the thread. */
int consul_stop_asked(void);
void consul_stop_nudge(void);
int consul_stop_emperor_fd(void);
void consul_stop_emperor_event(void);
/* Whether this master ends for good, as far as uWSGI knows. */
int consul_is_ending(void);

/* ---- worker.c ---- */

/* In a worker, before it takes requests: lets it lose none when it is asked to go. */
void consul_worker_prepare(void);

/* ---- plugin.c ---- */

struct consul_plugin {
    struct consul_service *services;
    struct consul_agent *agents;
    char owner[CONSUL_OWNER_LENGTH + 1];
    int inherited; /* the owner is that of the process before a reload */
};

#endif
