/*
 * A worker's end, by SIGHUP: it is to finish its requests and go. Gaps of uWSGI are closed here,
 * through which a client lost its answer:
 *
 * - Its handler exits at once where no request is marked as begun; but it is marked only some
 *   system calls after accept(), and a connection that was accepted just then is reset. So the
 *   worker is only told to take no further request, and left to go by itself: the signal
 *   interrupts its wait for connections. It is repeated for one that was on its way there.
 * - A wait for a slow client to take more of an answer is given up when a signal comes, and the
 *   rest of the answer with it.
 * - A worker that still starts takes no notice, and serves until it is killed.
 * - With `async`, and asyncio, its handler exits at once, whatever is under way. So no more
 *   connections are taken, and the handler has its way when all cores are free.
 * - What an offload thread still sends is cut off, wherever a worker ends.
 *
 * gevent has its own way, which waits for its requests.
 */
#include <uwsgi.h>

#include "consul.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

extern struct uwsgi_server uwsgi;

#define REPEAT_AFTER 10 /* milliseconds */
/* Then uWSGI's handler has its way: it is no request that keeps this worker. */
#define REPEATS 100
/* Looks at which nothing is under way: what was accepted is noted only some system calls later. */
#define IDLE_LOOKS 3

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static struct {
    pid_t pid;
    timer_t timer;
    int repeats;
    int idle_looks;
    volatile sig_atomic_t hurries;
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

static int is_answering(void) {
    int i;
    for (i = 0; i < uwsgi.cores; i++) {
        if (uwsgi.workers[uwsgi.mywid].cores[i].in_request)
            return 1;
    }
    return 0;
}

/*
 * With threads uWSGI's handler waits for all but the first of its own. Where the first is at the
 * application's code, these wait for an interpreter's lock which it holds, until the worker is
 * killed: so that wait is put off until the first has left its loop. Since 2.0.27 the handler does
 * not wait, and that function is not to be had. Only the first of uWSGI's own can leave by it: one
 * of the application's hands the signal on. The signals that follow wake the first.
 */
void wait_for_threads(void) __attribute__((weak));

static void on_hangup_with_threads(int signum) {
    int saved = errno;
    if (getpid() != worker.pid || (repeat_after(REPEAT_AFTER) && !worker.repeats)) {
        gracefully_kill(signum);
    } else if ((pid_t)syscall(SYS_gettid) == worker.pid && !worker.repeats++) {
        uwsgi.workers[uwsgi.mywid].manage_next_request = 0;
        if (!wait_for_threads)
            gracefully_kill(signum);
    } else if (worker.repeats > REPEATS && !is_answering()) {
        exit(UWSGI_RELOAD_CODE);
    }
    errno = saved;
}

/* Whichever queue its loop has: the listening sockets leave all but the master's. */
static void stop_accepting(void) {
    struct epoll_event unused;
    struct uwsgi_socket *each;
    int queue;
    for (each = uwsgi.sockets; each; each = each->next) {
        for (queue = 0; queue < 1024; queue++) {
            if (queue != uwsgi.master_queue && queue != each->fd)
                epoll_ctl(queue, EPOLL_CTL_DEL, each->fd, &unused);
        }
    }
}

static void on_hangup_of_async(int signum) {
    int saved = errno;
    int is_idle = uwsgi.async_queue_unused_ptr == uwsgi.async - 1;
    int is_child = getpid() != worker.pid;
    /* A child has the worker's queues. */
    if (!is_child && !worker.repeats++)
        stop_accepting();
    worker.idle_looks = is_idle ? worker.idle_looks + 1 : 0;
    if (is_child || worker.idle_looks > IDLE_LOOKS || repeat_after(REPEAT_AFTER))
        gracefully_kill(signum);
    errno = saved;
}

/* What the application does at its end is not interrupted. */
static void on_exit_begins(void) {
    if (getpid() != worker.pid)
        return;
    signal(SIGHUP, SIG_IGN);
    repeat_after(0);
    if (uwsgi.threads > 1 && worker.repeats && !worker.hurries && wait_for_threads)
        wait_for_threads();
}

/* It is to end at once, whatever it was asked before: then nothing is waited for. */
static void on_interrupt(int signum) {
    worker.hurries = 1;
    end_me(signum);
}

static int is_offloading(void) {
    int i;
    for (i = 0; i < uwsgi.offload_threads; i++) {
        int waiting = 0;
        if (uwsgi.offload_thread[i]->offload_requests_head ||
            ioctl(uwsgi.offload_thread[i]->pipe[1], FIONREAD, &waiting) || waiting)
            return 1;
    }
    return 0;
}

/* For as long as the master has mercy; not where the worker is to end at once. */
static void finish_offloads(void) {
    int idle_looks = 0;
    if (getpid() != worker.pid || worker.hurries || uwsgi.workers[uwsgi.mywid].manage_next_request)
        return;
    signal(SIGHUP, SIG_IGN);
    while (!worker.hurries && idle_looks++ < IDLE_LOOKS) {
        if (is_offloading())
            idle_looks = 0;
        poll(NULL, 0, REPEAT_AFTER);
    }
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

static int hold_hangup(void (*handler)(int)) {
    struct sigaction action;
    struct sigevent event;
    memset(&event, 0, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGHUP;
    /* An application's own thread would not wake the one that waits for connections. */
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &worker.timer) || atexit(on_exit_begins))
        return -1;
    uwsgi_unix_signal(SIGHUP, handler);
    if (!sigaction(SIGINT, NULL, &action) && action.sa_handler == end_me)
        uwsgi_unix_signal(SIGINT, on_interrupt);
    return 0;
}

void consul_worker_prepare(void) {
    struct sigaction action;
    int is_async = uwsgi.async > 1;
    worker.pid = getpid();
    if (uwsgi.offload_threads > 0 && atexit(finish_offloads))
        uwsgi_error("[consul] atexit()");
    if ((uwsgi.loop && strcmp(uwsgi.loop, "asyncio")) || sigaction(SIGHUP, NULL, &action) ||
        (action.sa_flags & SA_SIGINFO) || action.sa_handler != gracefully_kill)
        return;
    if (hold_hangup(is_async            ? on_hangup_of_async
                    : uwsgi.threads > 1 ? on_hangup_with_threads
                                        : on_hangup)) {
        uwsgi_error("[consul] can't prepare for a worker's end");
        return;
    }
    if (uwsgi.wait_write_hook == uwsgi_simple_wait_write_hook)
        uwsgi.wait_write_hook = wait_write;
    /* The master notes it before the signal, which came before there was a handler. */
    if (uwsgi.workers[uwsgi.mywid].cursed_at)
        uwsgi.workers[uwsgi.mywid].manage_next_request = 0;
}
