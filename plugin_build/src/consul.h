/* What the files of the consul plugin share. */
#ifndef CONSUL_PLUGIN_H
#define CONSUL_PLUGIN_H

#include <stdio.h>

#include "conversation.h"
#include "http.h"

/* ---- text.c: what values from outside become inside JSON, URLs and lines of a log ---- */

/* As a part of a JSON string. */
void consul_text_json(FILE *text, const char *value, size_t length);
/* As one segment of a URL's path, or one value of its query. */
void consul_text_url(FILE *text, const char *value);
/* Ends what open_memstream() began. Returns -1, and `data` is NULL, if there was no memory. */
int consul_text_end(FILE *text, char **data);
/* A URL as far as a log may show it: without credentials and without its query. */
void consul_url_line(const char *url, char *line, size_t size);

/* ---- options.c: what a consul-register line says ---- */

#define CONSUL_ERROR_SIZE 512

enum consul_check { CONSUL_CHECK_TTL, CONSUL_CHECK_HTTP, CONSUL_CHECK_TCP };

/* An address with a name, as TAG:ADDRESS or TAG:ADDRESS:PORT say it. */
struct consul_tagged {
    const char *tag;
    size_t tag_length;
    const char *address; /* without the brackets of IPv6 */
    size_t address_length;
    long port; /* -1 where it does not say */
};

/* Strings are NULL and numbers negative where the line does not say. The words of a list are
 * separated by CONSUL_BETWEEN_WORDS, which no value has, and are as they are meant. */
#define CONSUL_BETWEEN_WORDS "\n"
struct consul_options {
    char *name; /* NULL for what only the configuration before a reload has */
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
    char *tagged_addresses;
    char *check_address;
    char *check_method;
    char *check_header;
    char *check_body;
    char *check_tls_server_name;
    long port;
    long ttl;
    long stuck_after;
    long interval;
    long timeout;
    long check_port;
    long success_before_passing;
    long failures_before_critical;
    long deregister_after;
    long drain;
    long stop_timeout;
    long weight;
    long connect_timeout;
    long wait_workers;
    long worker_handler;
    long check_ssl_no_verify;
    long ssl_no_verify;
    long debug;

    char *storage; /* the strings point into it */
};

/* Returns 0, or -1 and one line in `error`. Nothing secret gets into that line. */
int consul_options_parse(struct consul_options *options, const char *line, char *error);
void consul_options_free(struct consul_options *options);
enum consul_check consul_options_check(const struct consul_options *options);
/* The path that check=http:/PATH or https:/PATH asks for. */
const char *consul_options_path(const struct consul_options *options);
/* Takes one word of tagged_addresses apart. Returns 0, or -1 where it is none. */
int consul_options_tagged(struct consul_tagged *tagged, const char *word, size_t length);

/* ---- settings.c: the options, completed from the environment and checked together ---- */

/* The owner of a registration, as hexadecimal digits in its metadata. */
#define CONSUL_OWNER_KEY "uwsgi_owner"
#define CONSUL_OWNER_LENGTH 32

struct consul_agent;
struct consul_plugin;
struct consul_service;

/* `handover` is what consul_settings_export() made before a reload, or NULL. Returns 0, or -1 and
 * one line in `error`. */
int consul_settings_complete(struct consul_plugin *plugin, const char *handover, char *error);
/* What the program that a reload starts in this process has to know of what this one registered,
 * tokens included. For the caller to free, or NULL if there is no memory for it. */
char *consul_settings_export(const struct consul_plugin *plugin);
int consul_same_place(const struct consul_access *a, const struct consul_access *b);

/* ---- handover.c: what one program leaves to the next one in its process ---- */

/* In the master, when nothing but the exec() is left to do. Returns 0, or -1. */
int consul_handover_leave(const char *text);
/* What was left to this process, for the caller to free, or NULL. Nothing of it stays where the
 * application or its children could find it. */
char *consul_handover_take(void);

/* ---- jobs.c: what an instance does beside its requests waits until it is its turn ---- */

/* Set where the configuration wants nothing to wait. */
extern int consul_jobs_in_trial;
/* In the master, when the application was loaded and nothing else was started. */
void consul_jobs_withhold(void);
/* In each cycle of the master. */
void consul_jobs_cycle(void);
/* In a process that is to wait. */
void consul_jobs_wait(void);

/* ---- health.c: how the workers are ---- */

enum consul_status { CONSUL_PASSING, CONSUL_WARNING, CONSUL_CRITICAL };
#define CONSUL_STATUSES 3
#define CONSUL_NOTE_SIZE 128

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
    int paused;
    int64_t patience;    /* how long a worker's violent end counts, in milliseconds */
    int64_t ready_at;    /* when a worker was last ready */
    int64_t stuck_since; /* when no worker could make progress any more, or 0 */
    int64_t replaced_at; /* when a worker had last to be replaced */
    uint64_t spawns_when_answered;
    int64_t queue_free_at;
    uint64_t requests;
    uint64_t spawns;
    uint64_t spawns_when_ready;
};

int64_t consul_now(void);
void consul_health_start(struct consul_health *health, int64_t patience);
void consul_health_look(struct consul_health *health);
/* Whether every worker that is meant to run accepts requests. */
int consul_health_is_ready(const struct consul_health *health);
/* The status for a check, and a sentence about it: workers may load the application for `ttl`
 * seconds, and be stuck for `stuck_after`. */
enum consul_status consul_health_judge(const struct consul_health *health, long ttl,
                                       long stuck_after, char *note);
/* Whether any request is being answered. */
int consul_health_in_request(void);

/* ---- agent.c: what an agent is asked, and what the log says about it ---- */

struct consul_service {
    struct consul_options options;
    struct consul_agent *agent;
    char *lookup_url; /* NULL where it can't be known */
    char *register_url;
    char *deregister_url;
    char *beat_urls[CONSUL_STATUSES]; /* NULL where there is no way to say that */
    enum consul_check check;

    /* The thread's. */
    struct consul_talk talk;
    long refusal; /* the HTTP status that was logged */
    enum consul_status status;
    char note[CONSUL_NOTE_SIZE];

    struct consul_service *next;
};

/* A request to an agent. */
struct consul_task {
    struct consul_agent *agent;
    enum consul_ask ask;            /* nothing: it is free */
    struct consul_service *service; /* NULL for the list */
    struct consul_exchange exchange;
    char *built; /* the body or URL, where it had to be built */
    char token[CONSUL_TOKEN_SIZE];
};

#define CONSUL_TASKS 8

/* One agent and the requests to it. */
struct consul_agent {
    struct consul_access access;
    char *list_url; /* all services that are ours; NULL where it can't be known */
    char label[128];
    const char *owner;
    int debug;

    /* The thread's. */
    CURLM *multi;
    struct consul_service *services; /* of all agents */
    struct consul_task tasks[CONSUL_TASKS];
    struct consul_token token;
    int64_t list_due;
    size_t list_ours;    /* how many services it should have, when it was asked for */
    size_t list_others;  /* and how many there are with other tokens */
    size_t list_visible; /* of which it had so many the last time */
    int list_misses;     /* how often the list lacked what a look-up then found */
    int is_stopping;
    int64_t answered_at;
    int64_t retry_at;
    int64_t looks_at; /* no look-ups before this */
    int failures;
    int trouble; /* what was logged, 0 if all is well */
    int64_t trouble_since;

    struct consul_agent *first; /* of all agents */
    struct consul_agent *next;
};

void consul_agent_start(struct consul_agent *agent, CURLM *multi, struct consul_service *services,
                        int64_t now);
/* Starts what is due; returns when to come back. */
int64_t consul_agent_step(struct consul_agent *agent, const struct consul_moment *moment);
/* Whether any request is under way. */
int consul_agent_is_busy(const struct consul_agent *agent);
/* What was asked has ended, with an answer or not. */
void consul_task_finish(struct consul_task *task, int64_t now);
/* From now on only deregistrations count. */
void consul_agent_stop(struct consul_agent *agent, int64_t now);
void consul_agent_free(struct consul_agent *agent);
/* The workers' health, as this service's check is to tell it. */
void consul_service_judge(struct consul_service *service, const struct consul_health *health);

/* ---- registration.c: what an agent is sent ---- */

extern const char *const consul_status_names[CONSUL_STATUSES];

/* Each for the caller to free, or NULL if there was no memory for it. */
char *consul_registration_build(const struct consul_service *service);
char *consul_beat_build(const struct consul_service *service);

/* ---- stop.c: holding uWSGI's stop back until clients had time to look elsewhere ---- */

/* In the master. A stop is not held back for longer than `limit` after something last went on;
 * 0 is not at all. */
void consul_stop_prepare(int wake_fd, int64_t limit);
enum consul_may { CONSUL_MAY_NOT, CONSUL_MAY_STOP, CONSUL_MAY_STOP_GRACEFULLY };
void consul_stop_cycle(enum consul_may may_stop, int64_t progress_at);
/* In the thread. */
int consul_stop_asked(void);
void consul_stop_wake_master(void);
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
    int imported; /* the owner is that of the process before a reload */
};

#endif
