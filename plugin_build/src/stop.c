/*
 * Holding uWSGI's stop back. uWSGI begins to stop inside a signal handler, in a command of its
 * fifo, or when the Emperor says so; when a plugin hears of it the workers are on their way
 * out, while clients are still being sent here. So each of these ways gets a stand-in that only
 * notes what was asked. The thread takes the services out of Consul, clients get some seconds
 * to notice, and then the master does what it was asked to do.
 *
 * Who asks a second time is not held back, and the most urgent wish counts. Nobody who asks for a
 * reload meanwhile gets one: the stop wins.
 */
#include <uwsgi.h>

#include "consul.h"

#include <sys/eventfd.h>

extern struct uwsgi_server uwsgi;

/* uWSGI's fifo commands: "can be accessed by plugins", but in no header. */
extern void (*uwsgi_fifo_table[256])(int);

typedef void (*function)(int);

static const int signals[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
#define SIGNALS (sizeof(signals) / sizeof(signals[0]))

enum emperor {
    EMPEROR_NONE,    /* there is none, or uWSGI listens itself */
    EMPEROR_WATCHED, /* the thread looks what comes from it */
    EMPEROR_HEARD,   /* something that uWSGI is to read */
    EMPEROR_HANDED   /* uWSGI is about to read it */
};

static struct {
    int wake_fd;
    int master_fd;
    int64_t limit; /* how long a stop is held back, in milliseconds */
    int64_t asked_at;
    struct sigaction actions[SIGNALS];
    int held[SIGNALS];
    enum emperor emperor;
    int emperor_stop;
    /* The most urgent of what was asked. */
    function asked;
    int signum;
    sig_atomic_t times;
    int released;
} stop = {.wake_fd = -1, .master_fd = -1};

/* Whether this function ends the instance for good. */
static int is_stop(function it) {
    if (it == kill_them_all || it == gracefully_kill_them_all)
        return 1;
    if (!uwsgi.exit_on_reload)
        return 0;
    return it == reap_them_all || (it == grace_them_all && !uwsgi.lazy);
}

static void write_one(int fd) {
    uint64_t one = 1;
    /* It fails only where as many are waiting to be read that one more makes no difference. */
    if (write(fd, &one, sizeof(one)) < 0)
        return;
}

static int is_reload(function it) {
    return it == grace_them_all || it == reap_them_all;
}

/* How little is left to a request that is under way. */
static int urgency(function it) {
    return it == kill_them_all ? 2 : it == reap_them_all ? 1 : 0;
}

/*
 * What gracefully_kill_them_all() did up to uWSGI 2.0.27. Since then it waits inside until every
 * worker is gone: deaf to signals, and without the mercy's end for one that never goes.
 */
static void end_gracefully(void) {
    int i;
    uwsgi_log_verbose("graceful shutdown triggered...\n");
    uwsgi.status.gracefully_destroying = 1;
    uwsgi_unsubscribe_all();
    for (i = 1; i <= uwsgi.numproc; i++) {
        if (uwsgi.workers[i].pid <= 0)
            continue;
        if (uwsgi.shutdown_sockets)
            uwsgi.workers[i].shutdown_sockets = 1;
        uwsgi_curse(i, SIGHUP);
    }
    for (i = 0; i < uwsgi.mules_cnt; i++) {
        if (uwsgi.mules[i].pid > 0)
            uwsgi_curse_mule(i, SIGHUP);
    }
    uwsgi_destroy_processes();
}

static void do_it(function it, int signum) {
    if (it != gracefully_kill_them_all)
        it(signum);
    else if (!uwsgi_instance_is_dying)
        end_gracefully();
}

/* In the master: what it is asked to do waits, is done, or isn't any more. */
static void ask(function it, int signum) {
    /* Its workers are on their way out already: there is nothing to hold back. */
    if (uwsgi_instance_is_reloading) {
        do_it(it, signum);
        return;
    }
    if (!is_stop(it)) {
        if (!consul_stop_asked())
            it(signum);
        return;
    }
    if (!stop.times || urgency(it) > urgency(stop.asked)) {
        stop.asked = it;
        stop.signum = signum;
    }
    __atomic_store_n(&stop.times, stop.times + 1, __ATOMIC_RELEASE);
    write_one(stop.wake_fd);
}

static function held_function(int signum) {
    size_t i;
    for (i = 0; i < SIGNALS; i++) {
        if (signals[i] == signum)
            return stop.actions[i].sa_handler;
    }
    return NULL;
}

/* In a new child, until it has handlers of its own, uWSGI's is as good as it was. */
static void on_signal(int signum) {
    int saved = errno;
    if (getpid() == uwsgi.workers[0].pid)
        ask(held_function(signum), signum);
    else
        held_function(signum)(signum);
    errno = saved;
}

/* A command of the fifo does not know by which letter it was called. */
#define STAND_IN(name, uwsgis)                                                                     \
    static void name(int unused) {                                                                 \
        (void)unused;                                                                              \
        ask(uwsgis, 0);                                                                            \
    }

STAND_IN(on_fifo_kill, kill_them_all)
STAND_IN(on_fifo_graceful, gracefully_kill_them_all)
STAND_IN(on_fifo_grace, grace_them_all)
STAND_IN(on_fifo_reap, reap_them_all)

static const struct {
    function uwsgis;
    function ours;
} fifo[] = {
    {kill_them_all, on_fifo_kill},
    {gracefully_kill_them_all, on_fifo_graceful},
    {grace_them_all, on_fifo_grace},
    {reap_them_all, on_fifo_reap},
};
#define FIFO (sizeof(fifo) / sizeof(fifo[0]))

static void hold_signals(void) {
    size_t i;
    for (i = 0; i < SIGNALS; i++) {
        if (sigaction(signals[i], NULL, &stop.actions[i]) ||
            (stop.actions[i].sa_flags & SA_SIGINFO) ||
            !(is_stop(stop.actions[i].sa_handler) || is_reload(stop.actions[i].sa_handler)))
            continue;
        uwsgi_unix_signal(signals[i], on_signal);
        stop.held[i] = 1;
    }
}

static void release_signals(void) {
    size_t i;
    for (i = 0; i < SIGNALS; i++) {
        if (stop.held[i] && sigaction(signals[i], &stop.actions[i], NULL))
            uwsgi_error("[consul] sigaction()");
    }
}

static void swap_fifo(int hold) {
    int command;
    size_t i;
    for (command = 0; command < 256; command++) {
        for (i = 0; i < FIFO; i++) {
            if (hold && uwsgi_fifo_table[command] == fifo[i].uwsgis)
                uwsgi_fifo_table[command] = fifo[i].ours;
            else if (!hold && uwsgi_fifo_table[command] == fifo[i].ours)
                uwsgi_fifo_table[command] = fifo[i].uwsgis;
        }
    }
}

/* ---- the Emperor ---- */

static void set_emperor(enum emperor emperor) {
    __atomic_store_n(&stop.emperor, emperor, __ATOMIC_RELEASE);
}

static enum emperor get_emperor(void) {
    return __atomic_load_n(&stop.emperor, __ATOMIC_ACQUIRE);
}

static void take_emperor(void) {
    if (!uwsgi.has_emperor || uwsgi.emperor_proxy || uwsgi.emperor_fd < 0)
        return;
    if (event_queue_del_fd(uwsgi.master_queue, uwsgi.emperor_fd, event_queue_read()))
        return;
    set_emperor(EMPEROR_WATCHED);
}

static void hand_emperor_over(void) {
    if (event_queue_add_fd_read(uwsgi.master_queue, uwsgi.emperor_fd))
        uwsgi_error("[consul] event_queue_add_fd_read()");
    set_emperor(EMPEROR_HANDED);
}

/* The byte that waits, -1 if none does, -2 if the Emperor is gone. */
static int peek_at_emperor(void) {
    unsigned char byte;
    ssize_t length = recv(uwsgi.emperor_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (length == 1)
        return byte;
    return length < 0 && (errno == EAGAIN || errno == EINTR) ? -1 : -2;
}

int consul_stop_emperor_fd(void) {
    return get_emperor() == EMPEROR_WATCHED ? uwsgi.emperor_fd : -1;
}

void consul_stop_emperor_event(void) {
    int byte = peek_at_emperor();
    if (byte == -1)
        return;
    /* 0 and 2 mean "stop" and "stop gracefully"; what else there is does not concern us, and a
     * reload comes too late for a stop that was asked for. */
    if (byte == 0 || byte == 2) {
        set_emperor(EMPEROR_NONE);
        __atomic_store_n(&stop.emperor_stop, 1, __ATOMIC_RELEASE);
    } else if (consul_stop_asked()) {
        set_emperor(EMPEROR_NONE);
    } else {
        set_emperor(EMPEROR_HEARD);
    }
    consul_stop_wake_master();
}

static void cycle_emperor(void) {
    if (stop.released)
        return;
    if (get_emperor() == EMPEROR_HEARD)
        hand_emperor_over();
    else if (get_emperor() == EMPEROR_HANDED && peek_at_emperor() == -1)
        take_emperor();
}

/* ---- what the plugin calls ---- */

int consul_is_ending(void) {
    return uwsgi_instance_is_dying || (uwsgi_instance_is_reloading && uwsgi.exit_on_reload);
}

void consul_stop_prepare(int wake_fd, int64_t limit) {
    stop.wake_fd = wake_fd;
    stop.limit = limit;
    stop.master_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (stop.master_fd < 0 || event_queue_add_fd_read(uwsgi.master_queue, stop.master_fd)) {
        uwsgi_error("[consul] can't hold a stop back");
        return;
    }
    if (!limit)
        return;
    hold_signals();
    swap_fifo(1);
    take_emperor();
}

/* Lets the master go through its cycle: it would sleep for up to a second otherwise. */
void consul_stop_wake_master(void) {
    if (stop.master_fd >= 0)
        write_one(stop.master_fd);
}

int consul_stop_asked(void) {
    return __atomic_load_n(&stop.times, __ATOMIC_ACQUIRE) ||
           __atomic_load_n(&stop.emperor_stop, __ATOMIC_ACQUIRE);
}

/* What was asked is done; gracefully, where nobody is busy and no request is to be cut off that
 * was accepted just now. */
static void release(int gracefully) {
    function it = gracefully ? gracefully_kill_them_all : stop.asked;
    stop.released = 1;
    release_signals();
    swap_fifo(0);
    if (!stop.times && !gracefully) {
        hand_emperor_over();
        return;
    }
    /* uWSGI's functions do not expect the same signal again while they are at work. */
    if (stop.signum)
        uwsgi_block_signal(stop.signum);
    do_it(it, stop.signum);
    if (stop.signum)
        uwsgi_unblock_signal(stop.signum);
}

void consul_stop_cycle(enum consul_may may_stop, int64_t progress_at) {
    uint64_t wakes;
    int64_t now = consul_now();
    /* Nothing to read is the usual case. */
    if (stop.master_fd >= 0 && read(stop.master_fd, &wakes, sizeof(wakes)) < 0 && errno != EAGAIN)
        uwsgi_error("[consul] read()");
    cycle_emperor();
    if (stop.released || !consul_stop_asked())
        return;
    if (!stop.asked_at) {
        stop.asked_at = now;
        uwsgi.touch_reload = NULL;
    }
    if (may_stop || stop.times > 1 || uwsgi_instance_is_reloading ||
        now > (progress_at > stop.asked_at ? progress_at : stop.asked_at) + stop.limit)
        release(may_stop == CONSUL_MAY_STOP_GRACEFULLY && stop.times < 2);
}
