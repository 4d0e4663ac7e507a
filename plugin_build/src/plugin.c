/*
 * Registers this uWSGI instance in Consul:
 *
 *   plugins = python3,consul
 *   consul-register = url=http://127.0.0.1:8500,name=shop,id=shop-1,port=2001
 *
 * One thread in the master speaks for all services. It starts in the first cycle of the
 * master: earlier, the fork of daemonize2 would lose it.
 */
#include <uwsgi.h>

#include "consul.h"

#include <poll.h>
#include <sys/eventfd.h>

extern struct uwsgi_server uwsgi;

/* Milliseconds. */
#define LOOK_STARTING 10 /* between two looks at workers that are not ready */
#define LOOK_SLOWEST 500 /* and at others */
#define LOOK_QUICKEST 100
#define LOOK_STOPPING 20
#define STOP_TIMEOUT 500 /* how long a stop waits for the next answer of an agent */
#define END_TIMEOUT 700  /* the same when the workers are gone */
#define FORK_TIMEOUT 100 /* how long a fork waits for the thread to pause */
#define WAIT_NOTED 5000  /* until the log says what a registration waits for */
#define STACK_SIZE (512 * 1024)

enum end {
    END_NOT,
    END_STOP,  /* for good: deregister what still is registered, if the agent answers */
    END_RELOAD /* the program that comes next keeps the registrations */
};

static struct consul_plugin plugin;

static struct {
    pthread_t thread;
    pid_t pid; /* of the process that the thread is in */
    int wake_fd;
    enum end end;
    int64_t progress_at; /* when an agent last did what a stop asks of it */
    enum consul_may may_stop;
    int prepared;
    /* What a program before this one, or this one for the next, has registered: to be taken back
     * should neither get so far as to have a thread for it. */
    char *handover;
    pid_t handover_pid;
} control = {.wake_fd = -1};

/*
 * A child that is forked while the thread is inside the allocator, the time zone or any other
 * library with a lock finds that lock taken for ever. So the thread is at work only with this
 * mutex, which it leaves whenever it waits, and which a fork takes first. What is done with it
 * does not block, and a fork does not wait for long.
 */
static pthread_mutex_t at_work = PTHREAD_MUTEX_INITIALIZER;
static __thread int paused;

struct loop {
    CURLM *multi;
    struct consul_moment moment;
    struct consul_health health;
    int64_t look_at;
    int64_t look_interval;
    int64_t started_at;
    int wait_is_noted;
    int64_t stopping_since; /* 0: it does not stop */
    int64_t served_since;   /* clients had the time that they need to go elsewhere */
    int idle_looks;
};

static enum end get_end(void) {
    return __atomic_load_n(&control.end, __ATOMIC_ACQUIRE);
}

/* The longest that any service asks for, in milliseconds. */
static int64_t longest(size_t number) {
    const struct consul_service *service;
    int64_t found = 0;
    for (service = plugin.services; service; service = service->next) {
        const void *field = (const char *)&service->options + number;
        int64_t milliseconds = *(const long *)field * 1000;
        if (milliseconds > found)
            found = milliseconds;
    }
    return found;
}
#define LONGEST(key) longest(offsetof(struct consul_options, key))

/* How long a stop may be held back; not at all where no service asks for it. */
static int64_t stop_limit(void) {
    int64_t limit = LONGEST(drain) + LONGEST(stop_timeout);
    return limit ? limit + STOP_TIMEOUT : 0;
}

static int64_t get_progress(void) {
    return __atomic_load_n(&control.progress_at, __ATOMIC_ACQUIRE);
}

static void set_progress(int64_t now) {
    __atomic_store_n(&control.progress_at, now, __ATOMIC_RELEASE);
}

/* ---- the thread ---- */

/* How many connections to each agent are kept when no request needs them. */
static void keep_connections(CURLM *multi, long each) {
    const struct consul_agent *agent;
    long count = 0;
    for (agent = plugin.agents; agent; agent = agent->next)
        count += each;
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, count);
}

static void start_loop(struct loop *loop) {
    struct consul_agent *agent;
    const struct consul_service *service;
    memset(loop, 0, sizeof(*loop));
    loop->multi = curl_multi_init();
    loop->look_interval = LOOK_SLOWEST;
    loop->started_at = consul_now();
    consul_health_start(&loop->health, LONGEST(stuck_after));
    for (service = plugin.services; service; service = service->next) {
        long soonest = service->options.ttl < service->options.stuck_after
                           ? service->options.ttl
                           : service->options.stuck_after;
        int64_t interval = soonest * 1000 / 10;
        if (interval < loop->look_interval)
            loop->look_interval = interval < LOOK_QUICKEST ? LOOK_QUICKEST : interval;
    }
    for (agent = plugin.agents; agent; agent = agent->next)
        consul_agent_start(agent, loop->multi, plugin.services, loop->started_at);
    if (loop->multi)
        keep_connections(loop->multi, 1);
}

/* A hook or an application that takes long, or fails over and over, is not seen elsewhere. */
static void note_wait(struct loop *loop) {
    const struct consul_service *service;
    if (loop->wait_is_noted || loop->moment.ready ||
        loop->moment.now - loop->started_at < WAIT_NOTED)
        return;
    for (service = plugin.services; service; service = service->next) {
        if (service->talk.state == CONSUL_ABSENT && service->options.wait_workers > 0)
            uwsgi_log("[consul] %s is not registered yet, it waits until every worker accepts "
                      "requests: %d of %d are alive, %d accept\n",
                      service->options.id, loop->health.alive, loop->health.workers,
                      loop->health.ready);
    }
    loop->wait_is_noted = 1;
}

static void look(struct loop *loop) {
    struct consul_service *service;
    /* There are none yet where a program ends before it has begun. */
    if (loop->moment.now < loop->look_at || loop->stopping_since || !uwsgi.workers)
        return;
    consul_health_look(&loop->health);
    loop->moment.ready |= consul_health_is_ready(&loop->health);
    loop->look_at = loop->moment.now + (loop->moment.ready ? loop->look_interval : LOOK_STARTING);
    for (service = plugin.services; service; service = service->next)
        consul_service_judge(service, &loop->health);
    note_wait(loop);
}

static void begin_to_stop(struct loop *loop) {
    struct consul_agent *agent;
    if (loop->stopping_since)
        return;
    if (!consul_stop_asked() && !consul_is_ending() && get_end() != END_STOP)
        return;
    loop->stopping_since = loop->moment.now;
    set_progress(loop->moment.now);
    keep_connections(loop->multi, CONSUL_TASKS);
    for (agent = plugin.agents; agent; agent = agent->next)
        consul_agent_stop(agent, loop->moment.now);
}

static int somebody_remains(void) {
    const struct consul_agent *agent;
    const struct consul_service *service;
    for (agent = plugin.agents; agent; agent = agent->next) {
        if (consul_agent_is_busy(agent))
            return 1;
    }
    for (service = plugin.services; service; service = service->next) {
        if (consul_is_unwanted(&service->talk))
            return 1;
    }
    return 0;
}

/* Until when clients may still come because Consul told them so. */
static int64_t drained_at(void) {
    const struct consul_service *service;
    int64_t latest = 0;
    for (service = plugin.services; service; service = service->next) {
        int64_t drained = service->talk.gone_at + service->options.drain * 1000;
        if (service->talk.gone_at && drained > latest)
            latest = drained;
    }
    return latest;
}

/* Whether requests are being answered that a stop would cut off, and should not. */
static enum consul_may judge_requests(struct loop *loop) {
    int64_t timeout = LONGEST(stop_timeout);
    if (!timeout)
        return CONSUL_MAY_STOP;
    loop->idle_looks = consul_health_in_request() ? 0 : loop->idle_looks + 1;
    /* Between two requests a worker seems idle. */
    if (loop->idle_looks > 2)
        return CONSUL_MAY_STOP_GRACEFULLY;
    return loop->moment.now >= loop->served_since + timeout ? CONSUL_MAY_STOP : CONSUL_MAY_NOT;
}

/* Tells the master when there is nothing left to wait for before it stops. */
static void allow_stop(struct loop *loop) {
    int64_t now = loop->moment.now;
    if (!loop->stopping_since)
        return;
    if (!loop->served_since && now >= drained_at() &&
        (!somebody_remains() || now >= get_progress() + STOP_TIMEOUT))
        loop->served_since = now;
    if (loop->served_since && !control.may_stop)
        __atomic_store_n(&control.may_stop, judge_requests(loop), __ATOMIC_RELEASE);
    if (control.may_stop)
        consul_stop_wake_master();
}

static int is_over(const struct loop *loop) {
    if (get_end() == END_STOP && loop->stopping_since)
        return !somebody_remains() || consul_now() >= get_progress() + END_TIMEOUT;
    return get_end() == END_RELOAD;
}

/* Lets each agent go on; returns until when to sleep. */
static int64_t step(struct loop *loop) {
    struct consul_agent *agent;
    int64_t until = loop->stopping_since ? loop->moment.now + LOOK_STOPPING : loop->look_at;
    for (agent = plugin.agents; agent; agent = agent->next) {
        int64_t next = consul_agent_step(agent, &loop->moment);
        if (next < until)
            until = next;
    }
    return until;
}

static void wait_until(struct loop *loop, int64_t until) {
    struct curl_waitfd extra[2] = {{control.wake_fd, CURL_WAIT_POLLIN, 0},
                                   {consul_stop_emperor_fd(), CURL_WAIT_POLLIN, 0}};
    int64_t left = until - consul_now();
    uint64_t wakes;
    /* At least one, so that no mistake anywhere can make this a busy loop. */
    int timeout = left < 1 ? 1 : left > LOOK_SLOWEST ? LOOK_SLOWEST : (int)left;
    pthread_mutex_unlock(&at_work);
    if (curl_multi_wait(loop->multi, extra, extra[1].fd < 0 ? 1 : 2, timeout, NULL) != CURLM_OK)
        poll(NULL, 0, timeout);
    pthread_mutex_lock(&at_work);
    if ((extra[0].revents & CURL_WAIT_POLLIN) && read(control.wake_fd, &wakes, sizeof(wakes)) < 0 &&
        errno != EAGAIN)
        uwsgi_error("[consul] read()");
    if (extra[1].revents)
        consul_stop_emperor_event();
}

/* Moves the requests on, and takes in those that ended. */
static void collect(struct loop *loop) {
    struct consul_exchange *exchange;
    int count;
    curl_multi_perform(loop->multi, &count);
    loop->moment.now = consul_now();
    while ((exchange = consul_exchange_ended(loop->multi))) {
        if ((exchange->http >= 200 && exchange->http < 300) || exchange->http == 404)
            set_progress(loop->moment.now);
        consul_task_finish(exchange->context, loop->moment.now);
    }
}

static void finish_loop(struct loop *loop) {
    struct consul_agent *agent;
    const struct consul_service *service;
    for (service = plugin.services; service; service = service->next) {
        if (get_end() == END_STOP && consul_is_unwanted(&service->talk))
            uwsgi_log("[consul] %s: not deregistered, the agent at %s does not answer\n",
                      service->options.id, service->agent->label);
    }
    for (agent = plugin.agents; agent; agent = agent->next)
        consul_agent_free(agent);
    curl_multi_cleanup(loop->multi);
}

static void converse(struct loop *loop) {
    while (!is_over(loop)) {
        int64_t until;
        loop->moment.now = consul_now();
        loop->moment.reloading = uwsgi_instance_is_reloading != 0;
        begin_to_stop(loop);
        look(loop);
        until = step(loop);
        allow_stop(loop);
        wait_until(loop, until);
        collect(loop);
    }
    finish_loop(loop);
}

static void *run(void *unused) {
    struct loop loop;
    (void)unused;
    pthread_mutex_lock(&at_work);
    start_loop(&loop);
    if (loop.multi)
        converse(&loop);
    else
        uwsgi_log("[consul] out of memory: nothing is registered\n");
    pthread_mutex_unlock(&at_work);
    return NULL;
}

/* ---- the master ---- */

/* As the functions of pthread take it. */
static struct timespec deadline_after(long milliseconds) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += milliseconds * 1000000L;
    deadline.tv_sec += deadline.tv_nsec / 1000000000L;
    deadline.tv_nsec %= 1000000000L;
    return deadline;
}

static void before_fork(void) {
    struct timespec deadline = deadline_after(FORK_TIMEOUT);
    paused = !pthread_mutex_timedlock(&at_work, &deadline);
}

static void after_fork(void) {
    if (paused)
        pthread_mutex_unlock(&at_work);
    paused = 0;
}

/* The thread is not in the child, and would never give back what it may have locked. */
static void in_child(void) {
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    memcpy(&at_work, &fresh, sizeof(at_work));
    paused = 0;
    consul_connections_drop();
}

/* The thread inherits its mask: signals are the master's. */
static int create_thread(void) {
    pthread_attr_t attributes;
    sigset_t all, before;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    sigfillset(&all);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    error = pthread_create(&control.thread, &attributes, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

static void start_thread(void) {
    int error;
    if (!control.pid && pthread_atfork(before_fork, after_fork, in_child))
        uwsgi_log("[consul] pthread_atfork() failed\n");
    control.pid = getpid();
    control.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control.wake_fd < 0) {
        uwsgi_error("[consul] eventfd()");
        return;
    }
    free(control.handover);
    control.handover = NULL;
    error = create_thread();
    if (error) {
        uwsgi_log("[consul] can't start a thread, nothing is registered: %s\n", strerror(error));
        close(control.wake_fd);
        control.wake_fd = -1;
    }
}

static int has_thread(void) {
    return control.pid == getpid() && control.wake_fd >= 0;
}

static void consul_master_cycle(void) {
    consul_jobs_cycle();
    if (!plugin.services)
        return;
    if (control.pid != getpid())
        start_thread();
    if (!has_thread())
        return;
    if (!control.prepared) {
        control.prepared = 1;
        consul_stop_prepare(control.wake_fd, stop_limit());
    }
    consul_stop_cycle(__atomic_load_n(&control.may_stop, __ATOMIC_ACQUIRE), get_progress());
}

/* Bounded: the thread never blocks in a request, and has to get on. */
static void join_thread(void) {
    int64_t before;
    int error;
    do {
        struct timespec deadline = deadline_after(END_TIMEOUT + 300);
        before = get_progress();
        error = pthread_timedjoin_np(control.thread, NULL, &deadline);
    } while (error && get_progress() != before);
    if (error)
        uwsgi_log("[consul] the thread does not end: going on without it\n");
}

static void end_thread(enum end end) {
    uint64_t one = 1;
    if (!has_thread())
        return;
    set_progress(consul_now());
    __atomic_store_n(&control.end, end, __ATOMIC_RELEASE);
    if (write(control.wake_fd, &one, sizeof(one)) < 0)
        uwsgi_error("[consul] write()");
    join_thread();
    close(control.wake_fd);
    control.wake_fd = -1;
}

static void on_exit_begins(void);

/* Keeps it also for this process, should it end before there is a thread. */
static void keep_handover(char *text) {
    if (!control.handover_pid && atexit(on_exit_begins))
        uwsgi_log("[consul] atexit() failed\n");
    control.handover = text;
    control.handover_pid = getpid();
}

static void hand_over(void) {
    char *text = consul_settings_export(&plugin);
    if (!text || consul_handover_leave(text))
        uwsgi_error("[consul] can't hand over to the next program");
    keep_handover(text);
}

static void consul_master_cleanup(void) {
    if (!has_thread())
        return;
    if (uwsgi_instance_is_reloading && !uwsgi_instance_is_dying && !uwsgi.exit_on_reload) {
        end_thread(END_RELOAD);
        hand_over();
    } else {
        end_thread(END_STOP);
    }
}

/*
 * uWSGI ends after a reload without having been a master again: the new program was refused its
 * configuration, a port or its application, or could not be started at all.
 */
static void on_exit_begins(void) {
    char error[CONSUL_ERROR_SIZE];
    if (getpid() != control.handover_pid)
        return;
    if (control.handover) {
        memset(&plugin, 0, sizeof(plugin));
        if (consul_settings_complete(&plugin, control.handover, error) || !plugin.services ||
            consul_curl_load())
            return;
        __atomic_store_n(&control.end, END_STOP, __ATOMIC_RELEASE);
        set_progress(consul_now());
        start_thread();
    }
    end_thread(END_STOP);
}

/* ---- uWSGI's hooks ---- */

static void refuse(const char *error) {
    uwsgi_log("[consul] consul-register: %s\n", error);
    exit(1);
}

static void consul_add(char *option, char *value, void *unused) {
    char error[CONSUL_ERROR_SIZE];
    struct consul_service **last = &plugin.services;
    (void)option;
    (void)unused;
    while (*last)
        last = &(*last)->next;
    *last = uwsgi_calloc(sizeof(struct consul_service));
    /* Here, because there may be no libraries in a chroot; whether it worked is asked later. */
    (void)consul_curl_load();
    if (consul_options_parse(&(*last)->options, value, error))
        refuse(error);
}

/* As early as can be: what follows may end the program. */
static void consul_on_load(void) {
    char *text = consul_handover_take();
    if (!text)
        return;
    keep_handover(text);
    (void)consul_curl_load();
}

static int consul_init(void) {
    char error[CONSUL_ERROR_SIZE];
    const char *missing;
    if (consul_settings_complete(&plugin, control.handover, error))
        refuse(error);
    missing = plugin.services ? consul_curl_load() : NULL;
    if (missing)
        refuse(missing);
    return 0;
}

/*
 * After a reload the services are registered already, and loading the application may take
 * longer than a ttl: the thread starts before that. A reload does not daemonize again. If the
 * application can't be loaded the process ends without having been a master.
 */
static void consul_preinit_apps(void) {
    if (!plugin.services || !plugin.imported)
        return;
    start_thread();
}

static void consul_hijack_worker(void) {
    const struct consul_service *service;
    for (service = plugin.services; service; service = service->next) {
        if (!service->options.worker_handler)
            return;
    }
    if (plugin.services)
        consul_worker_prepare();
}

static struct uwsgi_option consul_options[] = {
    {"consul-register", required_argument, 0,
     "register this instance as a service in Consul: key=value pairs, separated by commas. "
     "name, id, address, port, tagged_addresses, tags, meta, weight; "
     "url (http://127.0.0.1:8500), token, token_file, ca_file, cert_file, key_file, "
     "ssl_no_verify, connect_timeout (5); ttl (30), stuck_after (ttl), deregister_after (3600), "
     "wait_workers (1), drain (1), stop_timeout (0), worker_handler (1); "
     "check (ttl), interval (10), timeout (10), success_before_passing, "
     "failures_before_critical, check_address, check_port, check_method, check_header, "
     "check_body, check_tls_server_name, check_ssl_no_verify; "
     "register_url, deregister_url, check_url; debug",
     consul_add, NULL, UWSGI_OPT_MASTER},
    {"consul-jobs-in-trial", no_argument, 0,
     "timers, crons, mules, spoolers and daemons run also while a release is tried, and beside the "
     "one before it",
     uwsgi_opt_true, &consul_jobs_in_trial, 0},
    UWSGI_END_OF_OPTIONS /* brings its own comma */
};

struct uwsgi_plugin consul_plugin = {
    .name = "consul",
    .options = consul_options,
    .on_load = consul_on_load,
    .init = consul_init,
    .preinit_apps = consul_preinit_apps,
    .postinit_apps = consul_jobs_withhold,
    .spooler_init = consul_jobs_wait,
    .hijack_worker = consul_hijack_worker,
    .master_cycle = consul_master_cycle,
    .master_cleanup = consul_master_cleanup,
};
