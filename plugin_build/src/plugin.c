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
#define STOP_TIMEOUT 500 /* how long a stop waits for an agent that does not answer */
#define END_TIMEOUT 700  /* the same when the workers are gone */
#define FORK_TIMEOUT 100 /* how long a fork waits for the thread to pause */
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
    int64_t deadline;
    int may_stop;
    int prepared;
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
    int64_t stopping_since; /* 0: it does not stop */
};

static enum end get_end(void) {
    return __atomic_load_n(&control.end, __ATOMIC_ACQUIRE);
}

/* How long a stop may be held back; not at all where no service asks for it. */
static int64_t stop_limit(void) {
    const struct consul_service *service;
    int64_t longest = 0;
    for (service = plugin.services; service; service = service->next) {
        if (service->options.drain * 1000 > longest)
            longest = service->options.drain * 1000;
    }
    return longest ? longest + STOP_TIMEOUT : 0;
}

/* ---- the thread ---- */

static void start_loop(struct loop *loop) {
    struct consul_agent *agent;
    const struct consul_service *service;
    memset(loop, 0, sizeof(*loop));
    loop->multi = curl_multi_init();
    loop->look_interval = LOOK_SLOWEST;
    consul_health_start(&loop->health);
    for (service = plugin.services; service; service = service->next) {
        int64_t interval = service->options.ttl * 1000 / 10;
        if (interval < loop->look_interval)
            loop->look_interval = interval < LOOK_QUICKEST ? LOOK_QUICKEST : interval;
    }
    for (agent = plugin.agents; agent; agent = agent->next)
        consul_agent_start(agent, loop->multi, plugin.services);
}

static void look(struct loop *loop) {
    struct consul_service *service;
    if (loop->moment.now < loop->look_at || loop->stopping_since)
        return;
    consul_health_look(&loop->health);
    loop->moment.ready |= consul_health_is_ready(&loop->health);
    loop->look_at = loop->moment.now + (loop->moment.ready ? loop->look_interval : LOOK_STARTING);
    for (service = plugin.services; service; service = service->next)
        consul_service_judge(service, &loop->health);
}

static void begin_to_stop(struct loop *loop) {
    struct consul_agent *agent;
    if (loop->stopping_since)
        return;
    if (!consul_stop_asked() && !consul_is_ending() && get_end() != END_STOP)
        return;
    loop->stopping_since = loop->moment.now;
    for (agent = plugin.agents; agent; agent = agent->next)
        consul_agent_stop(agent, loop->moment.now);
}

static int somebody_remains(void) {
    const struct consul_agent *agent;
    const struct consul_service *service;
    for (agent = plugin.agents; agent; agent = agent->next) {
        if (agent->ask != CONSUL_ASK_NOTHING)
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

/* Tells the master when there is nothing left to wait for before it stops. */
static void allow_stop(struct loop *loop) {
    int64_t now = loop->moment.now;
    if (!loop->stopping_since)
        return;
    if (now >= drained_at() && (!somebody_remains() || now >= loop->stopping_since + STOP_TIMEOUT))
        __atomic_store_n(&control.may_stop, 1, __ATOMIC_RELEASE);
    if (__atomic_load_n(&control.may_stop, __ATOMIC_ACQUIRE))
        consul_stop_wake_master();
}

static int is_over(const struct loop *loop) {
    if (get_end() == END_STOP && loop->stopping_since)
        return !somebody_remains() || consul_now() >= control.deadline;
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
    while ((exchange = consul_exchange_ended(loop->multi)))
        consul_agent_finish(exchange->context, loop->moment.now);
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
        look(loop);
        begin_to_stop(loop);
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
    control.pid = getpid();
    control.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control.wake_fd < 0) {
        uwsgi_error("[consul] eventfd()");
        return;
    }
    if (consul_settings_export(&plugin))
        uwsgi_error("[consul] setenv()");
    if (pthread_atfork(before_fork, after_fork, after_fork))
        uwsgi_log("[consul] pthread_atfork() failed\n");
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
    consul_stop_cycle(__atomic_load_n(&control.may_stop, __ATOMIC_ACQUIRE));
}

/* Ends the thread; a bounded wait, as it never blocks in a request. */
static void end_thread(void) {
    uint64_t one = 1;
    struct timespec deadline = deadline_after(END_TIMEOUT + 300);
    enum end end = END_STOP;
    if (!has_thread())
        return;
    if (uwsgi_instance_is_reloading && !uwsgi.exit_on_reload)
        end = END_RELOAD;
    control.deadline = consul_now() + END_TIMEOUT;
    __atomic_store_n(&control.end, end, __ATOMIC_RELEASE);
    if (write(control.wake_fd, &one, sizeof(one)) < 0)
        uwsgi_error("[consul] write()");
    if (pthread_timedjoin_np(control.thread, NULL, &deadline))
        uwsgi_log("[consul] the thread does not end: going on without it\n");
    close(control.wake_fd);
    control.wake_fd = -1;
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
    if (consul_options_parse(&(*last)->options, value, error))
        refuse(error);
}

static int consul_init(void) {
    char error[CONSUL_ERROR_SIZE];
    if (consul_settings_complete(&plugin, error))
        refuse(error);
    if (plugin.services && curl_global_init(CURL_GLOBAL_ALL))
        refuse("can't initialise libcurl");
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
    if (atexit(end_thread))
        uwsgi_log("[consul] atexit() failed\n");
}

static void consul_hijack_worker(void) {
    if (plugin.services)
        consul_worker_prepare();
}

static struct uwsgi_option consul_options[] = {
    {"consul-register", required_argument, 0,
     "register this instance as a service in Consul: key=value pairs, separated by commas. "
     "name, id, address, port, tags, meta, weight; "
     "url (http://127.0.0.1:8500), token, token_file, ca_file, cert_file, key_file, "
     "ssl_no_verify; ttl (30), deregister_after (3600), drain (1), wait_workers (1), "
     "check (ttl), interval (10), timeout (10); "
     "register_url, deregister_url, check_url; debug",
     consul_add, NULL, UWSGI_OPT_MASTER},
    UWSGI_END_OF_OPTIONS /* brings its own comma */
};

struct uwsgi_plugin consul_plugin = {
    .name = "consul",
    .options = consul_options,
    .init = consul_init,
    .preinit_apps = consul_preinit_apps,
    .hijack_worker = consul_hijack_worker,
    .master_cycle = consul_master_cycle,
    .master_cleanup = end_thread,
};
