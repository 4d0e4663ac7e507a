/*
 * How the workers are, from what uWSGI keeps about them in shared memory. One look is a
 * snapshot; what makes a judgement is how long things have been as they are.
 */
#include <uwsgi.h>

#include "consul.h"

extern struct uwsgi_server uwsgi;

/* Milliseconds. Time that is granted to workers which load the application. */
#define LOADING_LIMIT 60000
/* A worker that dies is replaced by uWSGI in its next cycle, which may be a second away, and two
 * seconds later (its forkbomb-delay) if it had just been started. */
#define RESPAWN_LIMIT 4000
/* A listen queue may be full for this long. */
#define QUEUE_LIMIT 1000

int64_t consul_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether an option of the configuration loads an application, as uWSGI's own table of options
 * says. Plugins like php serve without one; lua's counts none that it has loaded, and ends a worker
 * that could not load it. */
static int has_application_option(void) {
    int i;
    for (i = 0; i < uwsgi.exported_opts_cnt; i++) {
        const struct uwsgi_option *option = uwsgi_opt_get(uwsgi.exported_opts[i]->key);
        if (option && option->type == required_argument && option->help &&
            strcmp(option->name, "lua") && !strncmp(option->help, "load ", 5) &&
            strstr(option->help, " app"))
            return 1;
    }
    return 0;
}

/* Whether an application was begun to be loaded and did not get through: Python's plugin, with
 * its many ways to name one, leaves its traces in the place for it. */
static int has_failed_to_load(const struct uwsgi_worker *worker) {
    const struct uwsgi_app *next;
    if (worker->apps_cnt || uwsgi.max_apps < 1)
        return 0;
    next = &worker->apps[0];
    return next->interpreter || next->callable;
}

void consul_health_start(struct consul_health *health, int64_t patience) {
    memset(health, 0, sizeof(*health));
    health->now = consul_now();
    health->patience = patience;
    health->ready_at = health->now;
    health->queue_free_at = health->now;
    health->needs_app = has_application_option();
}

/* Milliseconds since the request in this core began; the clock of requests is the wall's. */
static int64_t request_age(const struct uwsgi_core *core) {
    struct timeval now;
    int64_t age;
    if (!core->req.start_of_request || gettimeofday(&now, NULL))
        return 0;
    age = (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000 -
          (int64_t)(core->req.start_of_request / 1000);
    return age > 0 ? age : 0;
}

/* Whether a worker can't take another request. */
static int is_busy(struct consul_health *health, const struct uwsgi_worker *worker) {
    int i;
    int busy = 1;
    for (i = 0; i < uwsgi.cores; i++) {
        int64_t age;
        if (!worker->cores[i].in_request) {
            busy = 0;
            continue;
        }
        age = request_age(&worker->cores[i]);
        if (age > health->oldest)
            health->oldest = age;
    }
    return busy;
}

static void look_at_worker(struct consul_health *health, const struct uwsgi_worker *worker) {
    health->requests += worker->requests;
    health->spawns += worker->respawn_count;
    if (worker->cheaped)
        return;
    health->workers++;
    if (worker->pid <= 0 || kill(worker->pid, 0))
        return;
    health->alive++;
    if (!worker->accepting)
        return;
    health->ready++;
    health->with_app += worker->apps_cnt > 0;
    health->needs_app |= has_failed_to_load(worker);
    health->busy += is_busy(health, worker);
}

static void look_at_queues(struct consul_health *health) {
    const struct uwsgi_socket *socket;
    health->queue_full = 0;
    health->waiting = 0;
    for (socket = uwsgi.sockets; socket; socket = socket->next) {
        health->waiting += (int)socket->queue;
        health->queue_full |= socket->queue > 0 && socket->queue >= socket->max_queue;
    }
}

/*
 * The clock of being stuck runs while there is somebody to make progress, from the first look
 * without any. An answered request ends it, and so does a free worker that nobody waits for; but
 * one that is free because its request was ended by force has answered nothing: then the clock
 * only stands still.
 */
static void look_at_progress(struct consul_health *health, uint64_t answered, uint64_t spawned,
                             int64_t before) {
    int idle = !health->ready || (health->busy < health->ready && !health->waiting);
    if (health->spawns != spawned)
        health->replaced_at = health->now;
    if (health->requests != answered || health->now - health->replaced_at > health->patience)
        health->spawns_when_answered = health->spawns;
    if (health->requests != answered)
        health->stuck_since = 0;
    else if (!idle && !health->stuck_since)
        health->stuck_since = health->now;
    else if (idle && health->spawns == health->spawns_when_answered)
        health->stuck_since = 0;
    else if (idle && health->stuck_since)
        health->stuck_since += health->now - before;
}

void consul_health_look(struct consul_health *health) {
    uint64_t answered = health->requests;
    uint64_t spawned = health->spawns;
    int64_t before = health->now;
    int i;
    health->now = consul_now();
    health->cheap = uwsgi.status.is_cheap;
    health->paused = uwsgi.workers[0].suspended;
    health->workers = health->alive = health->ready = health->busy = health->with_app = 0;
    health->oldest = 0;
    health->requests = health->spawns = 0;
    health->needs_app |= has_failed_to_load(&uwsgi.workers[0]);
    for (i = 1; i <= uwsgi.numproc; i++)
        look_at_worker(health, &uwsgi.workers[i]);
    look_at_queues(health);
    if (health->ready || !health->workers) {
        health->ready_at = health->now;
        health->spawns_when_ready = health->spawns;
    }
    look_at_progress(health, answered, spawned, before);
    if (!health->queue_full)
        health->queue_free_at = health->now;
}

int consul_health_in_request(void) {
    int worker, core;
    for (worker = 1; worker <= uwsgi.numproc; worker++) {
        for (core = 0; core < uwsgi.cores; core++) {
            if (uwsgi.workers[worker].pid > 0 && uwsgi.workers[worker].cores[core].in_request)
                return 1;
        }
    }
    return 0;
}

int consul_health_is_ready(const struct consul_health *health) {
    return health->ready == health->workers;
}

static void note_time(char *note, const char *format, int a, int b, int64_t duration) {
    snprintf(note, CONSUL_NOTE_SIZE, format, a, b, (long)(duration / 1000));
}

/* No worker accepts requests. That is so for a moment at each respawn and reload. */
static enum consul_status judge_absence(const struct consul_health *health, long ttl, char *note) {
    int64_t absent = health->now - health->ready_at;
    int64_t limit = RESPAWN_LIMIT;
    uint64_t deaths = health->spawns - health->spawns_when_ready;
    if (deaths > 2 * (uint64_t)health->workers) {
        note_time(note, "workers die as they start: %d started, %d wanted, none ready for %ld s",
                  (int)deaths, health->workers, absent);
        return absent > limit ? CONSUL_CRITICAL : CONSUL_PASSING;
    }
    note_time(note, "%d/%d workers alive, none ready for %ld s", health->alive, health->workers,
              absent);
    /* uWSGI counts a spawn, forks, and notes the pid: a worker that was counted since the last look
     * may be alive without one. */
    if (uwsgi_instance_is_reloading || health->alive || !health->spawns ||
        health->replaced_at == health->now)
        limit = ttl * 1000 > LOADING_LIMIT ? ttl * 1000 : LOADING_LIMIT;
    return absent > limit ? CONSUL_CRITICAL : CONSUL_PASSING;
}

static void note_no_progress(const struct consul_health *health, char *note) {
    if (!health->waiting && health->busy < health->ready)
        note_time(note,
                  "every request was ended by force: %d of %d workers free, none answered "
                  "one for %ld s",
                  health->ready - health->busy, health->workers, health->now - health->stuck_since);
    else if (health->busy)
        note_time(note, "%d/%d workers busy, oldest request %ld s", health->busy, health->workers,
                  health->oldest);
    else
        note_time(note, "%d connections wait, none of %d workers took one for %ld s",
                  health->waiting, health->workers, health->now - health->stuck_since);
}

enum consul_status consul_health_judge(const struct consul_health *health, long ttl,
                                       long stuck_after, char *note) {
    if (health->paused) {
        snprintf(note, CONSUL_NOTE_SIZE, "paused: workers take no requests");
        return CONSUL_CRITICAL;
    }
    if (!health->workers) {
        snprintf(note, CONSUL_NOTE_SIZE, "%s",
                 health->cheap ? "cheap mode: workers start with the next request" : "no workers");
        return CONSUL_PASSING;
    }
    if (!health->ready)
        return judge_absence(health, ttl, note);
    if (health->needs_app && !health->with_app) {
        snprintf(note, CONSUL_NOTE_SIZE, "no application is loaded, every request is refused");
        return CONSUL_CRITICAL;
    }
    if (health->stuck_since && health->now - health->stuck_since >= stuck_after * 1000) {
        note_no_progress(health, note);
        return CONSUL_CRITICAL;
    }
    if (health->now - health->queue_free_at > QUEUE_LIMIT) {
        note_time(note, "listen queue full: %d connections wait, %d workers busy for %ld s",
                  health->waiting, health->busy, health->now - health->queue_free_at);
        return CONSUL_WARNING;
    }
    snprintf(note, CONSUL_NOTE_SIZE, "%d workers", health->workers);
    return CONSUL_PASSING;
}
