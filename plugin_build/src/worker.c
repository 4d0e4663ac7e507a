/*
 * A worker's end. uWSGI's handler for SIGHUP, which asks a worker to finish its request and go,
 * exits at once where no request is marked as begun; but it is marked only some system calls
 * after accept(), and a connection that was accepted just then is reset. So the worker is only
 * told to take no further request, and left to go by itself: a signal interrupts its wait for
 * connections. It is repeated for a worker that was on its way to that wait.
 *
 * With threads uWSGI has to cancel them from its handler: there it stays.
 */
#include <uwsgi.h>

#include "consul.h"

#include <sys/syscall.h>
#include <time.h>

extern struct uwsgi_server uwsgi;

#define NUDGE_AFTER 10 /* milliseconds */

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static struct {
    pid_t pid;
    timer_t timer;
} worker;

static int nudge_later(void) {
    static const struct itimerspec once = {.it_value = {0, NUDGE_AFTER * 1000000L}};
    return timer_settime(worker.timer, 0, &once, NULL);
}

/* In a child of the worker, which has no timer, uWSGI's handler is as good as it was. */
static void on_hangup(int signum) {
    int saved = errno;
    int is_child = getpid() != worker.pid;
    if (!is_child)
        uwsgi.workers[uwsgi.mywid].manage_next_request = 0;
    if (is_child || uwsgi.workers[uwsgi.mywid].cores[0].in_request || nudge_later())
        gracefully_kill(signum);
    errno = saved;
}

void consul_worker_prepare(void) {
    struct sigevent event;
    struct sigaction action;
    /* Other loops have ways of their own. */
    if (uwsgi.threads > 1 || uwsgi.async > 1 || uwsgi.loop || sigaction(SIGHUP, NULL, &action) ||
        (action.sa_flags & SA_SIGINFO) || action.sa_handler != gracefully_kill)
        return;
    memset(&event, 0, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGHUP;
    /* An application's own thread would not wake the one that waits for connections. */
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &worker.timer)) {
        uwsgi_error("[consul] timer_create()");
        return;
    }
    worker.pid = getpid();
    uwsgi_unix_signal(SIGHUP, on_hangup);
}
