/* What the files of the consul plugin share. */
#ifndef CONSUL_PLUGIN_H
#define CONSUL_PLUGIN_H

#include <uwsgi.h>
#include <curl/curl.h>

#define CONSUL_OWNER_LENGTH 32

/* One consul-register line. What the user wrote is set once, before any thread runs. */
struct consul_service {
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
    long port;
    long ttl;
    long deregister_after;
    long wait_workers;
    long ssl_no_verify;
    long debug;

    /* Written into the registration: another process that registers the same id takes
     * it over, and is then not deregistered by this one. */
    char owner[CONSUL_OWNER_LENGTH + 1];
    char *service_url;

    /* The thread's own. */
    int registered;
    int failing;
    int64_t next_request_ms;

    struct consul_service *next;
};

/* options.c: the service of a consul-register value; logs one line and exits on a mistake. */
struct consul_service *consul_parse(const char *value);

/* agent.c: one conversation with the agent. Each returns 0, or the HTTP status, or -1 where
 * there was no answer; `reason` then holds one line. */
#define CONSUL_REASON_LENGTH 256
int consul_register(CURL *curl, struct consul_service *service, char *reason);
int consul_beat(CURL *curl, struct consul_service *service, char *reason);
int consul_deregister(CURL *curl, struct consul_service *service, char *reason);

/* Whether the registration is still the one this process made: 1 yes, 0 no, -1 unknown. */
int consul_is_ours(CURL *curl, struct consul_service *service, char *reason);

#endif
