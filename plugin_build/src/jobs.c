/*
 * What an instance does beside its requests, by itself: timers, crons, watched files, mules,
 * spoolers, daemons. A release that is tried must do none of it, since it may never be approved;
 * and while two releases run side by side it is the old one that does. So the new one waits:
 *
 *   RELEASE_TRIAL=1     for good
 *   RELEASE_LOCK=FILE   until nobody holds a flock() on the file, as who lets releases take over
 *
 * Handlers of uWSGI's signals are called in whichever process by way of the language's plugin, so
 * there they are stopped. A mule passes the first plugin's master_fixup() before it begins.
 */
#include <uwsgi.h>

#include "consul.h"

#include <poll.h>
#include <sys/file.h>
#include <sys/mman.h>

extern struct uwsgi_server uwsgi;

#define PLUGINS 256
#define LOOK 100 /* milliseconds between two looks of a process that waits */

int consul_jobs_in_trial;

static struct {
    struct {
        int held;
        uint8_t raised[256]; /* the signals that requests and the like raised meanwhile */
    } * shared;              /* by all processes; NULL where nothing ever waited */
    const char *lock;
    int (*handlers[PLUGINS])(uint8_t, void *);
    void (*fixup)(int);
    struct uwsgi_cron *crons;
    struct uwsgi_daemon *daemons;
} jobs;

static int is_held(void) {
    return jobs.shared && __atomic_load_n(&jobs.shared->held, __ATOMIC_SEQ_CST);
}

static int is_locked(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int locked;
    if (fd < 0) {
        if (errno != ENOENT)
            uwsgi_error("[consul] open() of RELEASE_LOCK");
        return 0;
    }
    locked = flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

static int handle_signal(uint8_t number, void *handler) {
    const struct uwsgi_signal_entry *entry =
        &uwsgi.shared->signal_table[uwsgi.mywid * 256 + number];
    if (is_held()) {
        uint8_t *raised = &jobs.shared->raised[number];
        __atomic_store_n(raised, 1, __ATOMIC_SEQ_CST);
        /* Either the master raises it again or, where it has looked already, it is handled here. */
        if (is_held() || !__atomic_exchange_n(raised, 0, __ATOMIC_SEQ_CST))
            return 0;
    }
    return jobs.handlers[entry->modifier1](number, handler);
}

void consul_jobs_wait(void) {
    while (is_held())
        poll(NULL, 0, LOOK);
}

static void fix_up(int step) {
    if (step && uwsgi.muleid)
        consul_jobs_wait();
    if (jobs.fixup)
        jobs.fixup(step);
}

static void stand_before_plugins(void) {
    int i;
    /* Several of them may be one. */
    for (i = 0; i < PLUGINS; i++)
        jobs.handlers[i] = uwsgi.p[i]->signal_handler;
    for (i = 0; i < PLUGINS; i++) {
        if (jobs.handlers[i])
            uwsgi.p[i]->signal_handler = handle_signal;
    }
    jobs.fixup = uwsgi.p[0]->master_fixup;
    uwsgi.p[0]->master_fixup = fix_up;
}

void consul_jobs_withhold(void) {
    int is_trial = getenv("RELEASE_TRIAL") != NULL;
    jobs.lock = is_trial ? NULL : getenv("RELEASE_LOCK");
    if (consul_jobs_in_trial || !uwsgi.master_process ||
        !(is_trial || (jobs.lock && is_locked(jobs.lock))))
        return;
    jobs.shared =
        mmap(NULL, sizeof(*jobs.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (jobs.shared == MAP_FAILED) {
        uwsgi_error("[consul] mmap()");
        exit(1);
    }
    jobs.shared->held = 1;
    stand_before_plugins();
    jobs.crons = uwsgi.crons;
    jobs.daemons = uwsgi.daemons;
    uwsgi.crons = NULL;
    uwsgi.daemons = NULL;
    uwsgi_log("[consul] timers, crons, mules, spoolers and daemons %s\n",
              is_trial ? "are not run in a trial"
                       : "wait until the release before this one has ended");
}

/* Each once, but not those of crons: their minutes were the other release's. */
static void raise_again(void) {
    int i;
    for (i = 0; i < uwsgi.shared->cron_cnt; i++)
        jobs.shared->raised[uwsgi.shared->cron[i].sig] = 0;
    for (i = 0; i < 256; i++) {
        if (__atomic_exchange_n(&jobs.shared->raised[i], 0, __ATOMIC_SEQ_CST))
            uwsgi_route_signal((uint8_t)i);
    }
}

void consul_jobs_cycle(void) {
    struct uwsgi_cron **last_cron = &uwsgi.crons;
    struct uwsgi_daemon **last_daemon = &uwsgi.daemons;
    if (!is_held() || !jobs.lock || uwsgi_instance_is_dying || uwsgi_instance_is_reloading ||
        is_locked(jobs.lock))
        return;
    while (*last_cron)
        last_cron = &(*last_cron)->next;
    while (*last_daemon)
        last_daemon = &(*last_daemon)->next;
    *last_cron = jobs.crons;
    *last_daemon = jobs.daemons;
    uwsgi_log("[consul] timers, crons, mules, spoolers and daemons begin\n");
    __atomic_store_n(&jobs.shared->held, 0, __ATOMIC_SEQ_CST);
    raise_again();
    uwsgi_daemons_spawn_all();
}
