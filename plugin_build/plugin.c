/*
 * Registers this uWSGI instance in Consul:
 *
 *   plugins = python3,consul
 *   consul-register = url=http://127.0.0.1:8500,name=shop,id=shop-1,port=2001
 *
 * One thread in the master speaks for all services, over one connection. It starts in
 * the first cycle of the master: earlier, the fork of daemonize2 would lose it.
 */
#include "consul.h"

#include <poll.h>

extern struct uwsgi_server uwsgi;

#define LOOK_MS 20      /* between two looks at workers that are not ready */
#define RETRY_MS 500    /* between two tries to reach the agent */
#define NOTICE_MS 100   /* until the thread notices that uWSGI stops */
#define GOODBYE_MS 2000 /* how long a stop waits for the thread */

static struct {
    struct consul_service *services;
    struct uwsgi_thread *thread;
    int abandoned;
} consul;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether this master ends for good; with exit-on-reload a reload is the end. */
static int is_stopping(void) {
    if (uwsgi_instance_is_dying)
        return 1;
    return uwsgi_instance_is_reloading && uwsgi.exit_on_reload;
}

/* Whether every worker that is meant to run accepts requests. */
static int workers_are_ready(void) {
    int i;
    for (i = 1; i <= uwsgi.numproc; i++) {
        struct uwsgi_worker *worker = &uwsgi.workers[i];
        if (!worker->cheaped && (worker->pid <= 0 || !worker->accepting))
            return 0;
    }
    return 1;
}

/* Logs when trouble starts and when it ends, not at every beat. */
static void note_failure(struct consul_service *service, const char *reason) {
    if (!service->failing)
        uwsgi_log("[consul] %s: %s; trying on\n", service->id, reason);
    service->failing = 1;
}

static void enroll(CURL *curl, struct consul_service *service) {
    char reason[CONSUL_REASON_LENGTH];
    if (service->wait_workers && !workers_are_ready()) {
        service->next_request_ms = now_ms() + LOOK_MS;
        return;
    }
    if (consul_register(curl, service, reason)) {
        note_failure(service, reason);
        service->next_request_ms = now_ms() + RETRY_MS;
        return;
    }
    uwsgi_log("[consul] registered %s as %s\n", service->id, service->name);
    service->registered = 1;
    service->failing = 0;
    service->next_request_ms = now_ms() + service->ttl * 1000 / 3;
}

static void beat(CURL *curl, struct consul_service *service) {
    char reason[CONSUL_REASON_LENGTH];
    int status = consul_beat(curl, service, reason);
    service->next_request_ms = now_ms() + service->ttl * 1000 / 3;
    if (status == 0) {
        if (service->failing)
            uwsgi_log("[consul] %s: the agent answers again\n", service->id);
        service->failing = 0;
        return;
    }
    note_failure(service, reason);
    if (status > 0) {
        /* The agent answers, but does not know the check: 404 today, 500 in older versions. */
        service->registered = 0;
        service->next_request_ms = 0;
    } else {
        service->next_request_ms = now_ms() + RETRY_MS;
    }
}

/* Does what is due and returns when the next thing will be. */
static int64_t serve(CURL *curl) {
    struct consul_service *service;
    int64_t next = now_ms() + 60000;
    for (service = consul.services; service; service = service->next) {
        if (is_stopping())
            return 0;
        if (service->next_request_ms <= now_ms()) {
            if (service->registered)
                beat(curl, service);
            else
                enroll(curl, service);
        }
        if (service->next_request_ms < next)
            next = service->next_request_ms;
    }
    return next;
}

static void say_goodbye(CURL *curl) {
    struct consul_service *service;
    char reason[CONSUL_REASON_LENGTH];
    for (service = consul.services; service; service = service->next) {
        int ours;
        if (!service->registered)
            continue;
        ours = consul_is_ours(curl, service, reason);
        if (ours == 0)
            uwsgi_log("[consul] %s is registered by another process: left alone\n", service->id);
        else if (ours < 0 || consul_deregister(curl, service, reason))
            uwsgi_log("[consul] %s: not deregistered: %s\n", service->id, reason);
        else
            uwsgi_log("[consul] deregistered %s\n", service->id);
        service->registered = 0;
    }
}

/* Sleeps until a moment, or until the master writes to the pipe; true in the latter case. */
static int woken(int fd, int64_t until) {
    struct pollfd poller = {fd, POLLIN, 0};
    int64_t left = until - now_ms();
    if (left > NOTICE_MS)
        left = NOTICE_MS;
    return poll(&poller, 1, left > 0 ? (int)left : 0) > 0;
}

static void consul_loop(struct uwsgi_thread *thread) {
    CURL *curl = curl_easy_init();
    int64_t next = 0;
    if (!curl) {
        uwsgi_log("[consul] can't initialise libcurl: nothing is registered\n");
        return;
    }
    while (!is_stopping() && !woken(thread->pipe[1], next)) {
        if (next <= now_ms())
            next = serve(curl);
    }
    /* The successor of a reload keeps the registration; only an end takes it back. */
    if (is_stopping())
        say_goodbye(curl);
    curl_easy_cleanup(curl);
    if (write(thread->pipe[1], "", 1) != 1)
        uwsgi_error("[consul] write()");
}

static void consul_add(char *opt, char *value, void *unused) {
    struct consul_service **last = &consul.services;
    (void)opt;
    (void)unused;
    while (*last)
        last = &(*last)->next;
    *last = consul_parse(value);
}

static int consul_init(void) {
    if (consul.services && curl_global_init(CURL_GLOBAL_ALL)) {
        uwsgi_log("[consul] can't initialise libcurl\n");
        exit(1);
    }
    return 0;
}

static void consul_master_cycle(void) {
    if (!consul.services || consul.thread || consul.abandoned)
        return;
    consul.thread = uwsgi_thread_new_with_data(consul_loop, NULL);
    if (!consul.thread) {
        uwsgi_log("[consul] can't start a thread: nothing is registered\n");
        consul.abandoned = 1;
    }
}

/* Called when the workers are gone, and twice with exit-on-reload. */
static void consul_master_cleanup(void) {
    struct pollfd poller;
    char byte;
    if (!consul.thread)
        return;
    if (write(consul.thread->pipe[0], "", 1) != 1)
        uwsgi_error("[consul] write()");
    poller.fd = consul.thread->pipe[0];
    poller.events = POLLIN;
    if (poll(&poller, 1, GOODBYE_MS) <= 0)
        uwsgi_log("[consul] the agent does not answer: stopping without it\n");
    else if (read(poller.fd, &byte, 1) != 1)
        uwsgi_error("[consul] read()");
    consul.thread = NULL;
    consul.abandoned = 1;
}

static struct uwsgi_option consul_options[] = {
    {"consul-register", required_argument, 0,
     "register this instance as a service in Consul; keys: name url id port address tags meta "
     "token token_file ttl deregister_after wait_workers register_url deregister_url check_url "
     "ssl_no_verify debug",
     consul_add, NULL, UWSGI_OPT_MASTER},
    UWSGI_END_OF_OPTIONS /* with its own comma */
};

struct uwsgi_plugin consul_plugin = {
    .name = "consul",
    .options = consul_options,
    .init = consul_init,
    .master_cycle = consul_master_cycle,
    .master_cleanup = consul_master_cleanup,
};
