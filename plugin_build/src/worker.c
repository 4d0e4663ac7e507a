/*
 * A worker's end, by SIGHUP: it is to finish its request and go. Three gaps of uWSGI are closed
 * here, through which a client lost its answer:
 *
 * - Its handler exits at once where no request is marked as begun; but it is marked only some
 *   system calls after accept(), and a connection that was accepted just then is reset. So the
 *   worker is only told to take no further request, and left to go by itself: the signal
 *   interrupts its wait for connections. It is repeated for one that was on its way there.
 * - A wait for a slow client to take more of an answer is given up when a signal comes, and the
 *   rest of the answer with it.
 * - A worker that still starts takes no notice, and serves until it is killed.
 *
 * With threads uWSGI has to cancel them from its handler, other loops have ways of their own:
 * there all is left as it is.
 */
#include <uwsgi.h>

#include "consul.h"

#include <poll.h>
#include <sys/syscall.h>
#include <time.h>

extern struct uwsgi_server uwsgi;

#define REPEAT_AFTER 10 /* milliseconds */
/* Then uWSGI's handler has its way: it is no request that keeps this worker. */
#define REPEATS 100

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static struct {
    pid_t pid;
    timer_t timer;
    int repeats;
} worker;

static int repeat_after(long milliseconds) {
    struct itimerspec once = {.it_value = {0, milliseconds * 1000000L}};
    return timer_settime(worker.timer, 0, &once, NULL);
}

/* In a child of the worker, which has no timer, uWSGI's handler is as good as it was. */
static void on_hangup(int signum) {
    int saved = errno;
    int is_child = getpid() != worker.pid;
    if (!is_child)
        uwsgi.workers[uwsgi.mywid].manage_next_request = 0;
    if (is_child || uwsgi.workers[uwsgi.mywid].cores[0].in_request || worker.repeats++ >= REPEATS ||
        repeat_after(REPEAT_AFTER))
        gracefully_kill(signum);
    errno = saved;
}

/* What the application does at its end is not interrupted. */
static void on_exit_begins(void) {
    if (getpid() != worker.pid)
        return;
    signal(SIGHUP, SIG_IGN);
    repeat_after(0);
}

/* As uwsgi_simple_wait_write_hook(), but for signals. */
static int wait_write(int fd, int seconds) {
    struct pollfd client = {.fd = fd, .events = POLLOUT};
    int64_t until = consul_now() + (int64_t)seconds * 1000;
    int found;
    do {
        int64_t left = until - consul_now();
        found = poll(&client, 1, seconds < 0 ? -1 : left < 0 ? 0 : (int)left);
    } while (found < 0 && errno == EINTR);
    if (found < 0)
        uwsgi_error("[consul] poll()");
    return found > 0 && !(client.revents & POLLOUT) ? -1 : found;
}

static int hold_hangup(void) {
    struct sigevent event;
    memset(&event, 0, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGHUP;
    /* An application's own thread would not wake the one that waits for connections. */
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &worker.timer))
        return -1;
    worker.pid = getpid();
    if (atexit(on_exit_begins))
        return -1;
    uwsgi_unix_signal(SIGHUP, on_hangup);
    return 0;
}

void consul_worker_prepare(void) {
    struct sigaction action;
    if (uwsgi.threads > 1 || uwsgi.async > 1 || uwsgi.loop || sigaction(SIGHUP, NULL, &action) ||
        (action.sa_flags & SA_SIGINFO) || action.sa_handler != gracefully_kill)
        return;
    if (hold_hangup()) {
        uwsgi_error("[consul] can't prepare for a worker's end");
        return;
    }
    if (uwsgi.wait_write_hook == uwsgi_simple_wait_write_hook)
        uwsgi.wait_write_hook = wait_write;
    /* The master notes it before the signal, which came before there was a handler. */
    if (uwsgi.workers[uwsgi.mywid].cursed_at)
        uwsgi.workers[uwsgi.mywid].manage_next_request = 0;
}
