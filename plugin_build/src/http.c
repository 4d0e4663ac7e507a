/* HTTP requests that never block: each is begun here and goes on inside curl's multi handle. */
#define _GNU_SOURCE

#include "http.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Milliseconds. */
#define UNACKNOWLEDGED_LIMIT 1000
/* Until a request that hangs is sent again beside the first, over a new connection: an agent
 * that comes back is found within a second. */
#define SECOND_ATTEMPT 700
#define REQUEST_LIMIT 10000 /* until it is given up, if it was connected in half of that */

/* An answer that goes on for longer than this is not one of Consul's: thousands of services that
 * are ours have room in it. */
#define ANSWER_LIMIT (16L * 1024 * 1024)

/* What changes with a file. */
static void read_stamp(const struct stat *file, int64_t stamp[4]) {
    stamp[0] = (int64_t)file->st_dev;
    stamp[1] = (int64_t)file->st_ino;
    stamp[2] = (int64_t)file->st_size;
    stamp[3] = (int64_t)file->st_mtim.tv_sec * 1000000000 + file->st_mtim.tv_nsec;
}

/* The first line of the file becomes the token; returns whether it is another one, or -1. */
static int read_token_file(struct consul_token *token, const char *path) {
    char line[CONSUL_TOKEN_SIZE];
    struct stat file;
    ssize_t length = -1;
    int changed;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -1;
    if (!fstat(fd, &file))
        length = read(fd, line, sizeof(line) - 1);
    close(fd);
    if (length < 0)
        return -1;
    line[length] = 0;
    line[strcspn(line, "\r\n")] = 0;
    /* Somebody is about to write it. Until then the token before is as good, if there was one. */
    if (!*line && *token->text)
        return -1;
    changed = strcmp(line, token->text) != 0;
    memcpy(token->text, line, sizeof(line));
    read_stamp(&file, token->stamp);
    return changed;
}

static int is_current(const struct consul_token *token, const char *path) {
    int64_t stamp[4];
    struct stat file;
    if (stat(path, &file))
        return 0;
    read_stamp(&file, stamp);
    return !memcmp(stamp, token->stamp, sizeof(stamp));
}

int consul_token_refresh(struct consul_token *token, const struct consul_access *access) {
    int changed;
    if (!access->token_file) {
        snprintf(token->text, sizeof(token->text), "%s", access->token ? access->token : "");
        return 0;
    }
    if (is_current(token, access->token_file))
        return 0;
    changed = read_token_file(token, access->token_file);
    /* While the file is being replaced the last token is as good as any. */
    token->missing = changed < 0;
    return changed > 0;
}

static size_t receive(char *data, size_t size, size_t count, void *target) {
    struct consul_answer *answer = target;
    size_t length = size * count;
    if (answer->length + length > ANSWER_LIMIT)
        return 0;
    consul_answer_feed(answer, data, length);
    return length;
}

/* ---- connections ---- */

#define CONNECTIONS 64

/* Descriptors, -1 where there is none. What is in here is open, also for who is forked just now. */
static int connections[CONNECTIONS];
static size_t connections_seen; /* how many places were ever in use */

static void replace_connection(int before, int after) {
    size_t i;
    for (i = 0; i < connections_seen && connections[i] != before; i++)
        ;
    if (i == CONNECTIONS || (i == connections_seen && before >= 0))
        return;
    __atomic_store_n(&connections[i], after, __ATOMIC_RELEASE);
    if (i == connections_seen)
        connections_seen++;
}

void consul_connections_drop(void) {
    size_t i;
    for (i = 0; i < connections_seen; i++) {
        if (connections[i] >= 0)
            close(connections[i]);
    }
    connections_seen = 0;
}

/* Lets a connection to a host that went away fail as soon as a new one would, and keeps it from
 * programs that uWSGI or the application start. */
static int prepare_socket(void *unused, curl_socket_t fd, curlsocktype purpose) {
    unsigned int limit = UNACKNOWLEDGED_LIMIT;
    (void)unused;
    (void)purpose;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC))
        return CURL_SOCKOPT_ERROR;
    /* Fails on unix sockets, which have no packets to lose. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof(limit));
    replace_connection(-1, fd);
    return CURL_SOCKOPT_OK;
}

static int close_socket(void *unused, curl_socket_t fd) {
    (void)unused;
    replace_connection(fd, -1);
    return close(fd);
}

static int add_header(struct curl_slist **headers, const char *line) {
    struct curl_slist *longer = curl_slist_append(*headers, line);
    if (!longer)
        return -1;
    *headers = longer;
    return 0;
}

static int build_headers(struct consul_attempt *attempt, const struct consul_request *request) {
    char line[CONSUL_TOKEN_SIZE + 32];
    /* Without a "100 Continue" to wait for. */
    if (add_header(&attempt->headers, "Expect:") ||
        (request->body && add_header(&attempt->headers, "Content-Type: application/json")))
        return -1;
    if (!*request->token)
        return 0;
    snprintf(line, sizeof(line), "X-Consul-Token: %s", request->token);
    return add_header(&attempt->headers, line);
}

static long connect_limit(const struct consul_access *access) {
    return access->connect_timeout ? access->connect_timeout : CONSUL_CONNECT_TIMEOUT;
}

static void set_protocols(CURL *curl) {
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
#if LIBCURL_VERSION_NUM >= 0x075700
    /* A name look-up that hangs does not keep uWSGI from stopping. */
    curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L);
#endif
}

static void set_transport(CURL *curl, const struct consul_access *access, int fresh) {
    /* Without it libcurl uses SIGALRM, and signals are uWSGI's. */
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, connect_limit(access));
    curl_easy_setopt(curl, CURLOPT_SOCKOPTFUNCTION, prepare_socket);
    curl_easy_setopt(curl, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_FRESH_CONNECT, (long)fresh);
    /* A proxy is for the world outside, not for an agent on this host. */
    curl_easy_setopt(curl, CURLOPT_NOPROXY, access->no_proxy ? access->no_proxy : CONSUL_NO_PROXY);
    set_protocols(curl);
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, access->socket);
    /* Without one it is the system's; NULL would mean none. */
    if (access->ca_file) {
        curl_easy_setopt(curl, CURLOPT_CAINFO, access->ca_file);
        curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    }
    curl_easy_setopt(curl, CURLOPT_SSLCERT, access->cert_file);
    curl_easy_setopt(curl, CURLOPT_SSLKEY, access->key_file);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, access->ssl_no_verify ? 0L : 1L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, access->ssl_no_verify ? 0L : 2L);
}

static void set_request(CURL *curl, struct consul_attempt *attempt,
                        const struct consul_request *request) {
    curl_easy_setopt(curl, CURLOPT_URL, request->url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, attempt->headers);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &attempt->answer);
    curl_easy_setopt(curl, CURLOPT_PRIVATE, attempt);
    if (!strcmp(request->method, "GET"))
        return;
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request->method);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request->body ? request->body : "");
}

/* What was under way is broken off, and its connection closed. */
static void stop_attempt(struct consul_attempt *attempt) {
    if (attempt->active)
        curl_multi_remove_handle(attempt->exchange->multi, attempt->curl);
    attempt->active = 0;
    curl_slist_free_all(attempt->headers);
    attempt->headers = NULL;
}

static int start_attempt(struct consul_exchange *exchange, size_t number, int fresh) {
    struct consul_attempt *attempt = &exchange->attempts[number];
    const struct consul_request *request = &exchange->request;
    stop_attempt(attempt);
    if (!attempt->curl)
        attempt->curl = curl_easy_init();
    if (!attempt->curl)
        return -1;
    curl_easy_reset(attempt->curl);
    attempt->exchange = exchange;
    consul_answer_start(&attempt->answer, request->owner);
    if (build_headers(attempt, request))
        return -1;
    set_transport(attempt->curl, request->access, fresh);
    set_request(attempt->curl, attempt, request);
    if (curl_multi_add_handle(exchange->multi, attempt->curl) != CURLM_OK)
        return -1;
    attempt->active = 1;
    return 0;
}

int consul_exchange_start(struct consul_exchange *exchange, CURLM *multi,
                          const struct consul_request *request, int64_t now) {
    exchange->multi = multi;
    exchange->request = *request;
    exchange->started_at = exchange->attempt_at = now;
    return start_attempt(exchange, 0, 0);
}

int64_t consul_exchange_watch(struct consul_exchange *exchange, int64_t now) {
    int64_t limit = 2 * (int64_t)connect_limit(exchange->request.access);
    if (now - exchange->started_at >= (limit > REQUEST_LIMIT ? limit : REQUEST_LIMIT)) {
        consul_exchange_stop(exchange);
        return 0;
    }
    if (now - exchange->attempt_at >= SECOND_ATTEMPT) {
        exchange->attempt_at = now;
        /* Beside the one that still may be answered. If it fails, it is tried again, like one that
         * hangs. */
        (void)start_attempt(exchange, exchange->attempts[0].active ? 1 : 0, 1);
    }
    return exchange->attempt_at + SECOND_ATTEMPT;
}

/* Returns 0 if the other attempt may still be answered. */
static int end_attempt(struct consul_attempt *attempt, CURLcode code) {
    struct consul_exchange *exchange = attempt->exchange;
    struct consul_attempt *other = &exchange->attempts[attempt == &exchange->attempts[0]];
    long number = 0;
    exchange->http = 0;
    if (code == CURLE_OK)
        curl_easy_getinfo(attempt->curl, CURLINFO_RESPONSE_CODE, &exchange->http);
    else if (code == CURLE_COULDNT_CONNECT)
        curl_easy_getinfo(attempt->curl, CURLINFO_OS_ERRNO, &number);
    stop_attempt(attempt);
    if (!exchange->http && other->active)
        return 0;
    consul_exchange_stop(exchange);
    exchange->answer = &attempt->answer;
    /* curl's own text has the milliseconds in it: different each time. */
    exchange->too_long = code == CURLE_WRITE_ERROR;
    exchange->error = number ? 1000 + (int)number : (int)code;
    exchange->reason = number ? strerror((int)number) : curl_easy_strerror(code);
    return 1;
}

struct consul_exchange *consul_exchange_ended(CURLM *multi) {
    CURLMsg *message;
    int left;
    while ((message = curl_multi_info_read(multi, &left))) {
        struct consul_attempt *attempt = NULL;
        CURLcode code = message->data.result;
        if (message->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &attempt);
        if (end_attempt(attempt, code))
            return attempt->exchange;
    }
    return NULL;
}

void consul_exchange_stop(struct consul_exchange *exchange) {
    stop_attempt(&exchange->attempts[0]);
    stop_attempt(&exchange->attempts[1]);
}

void consul_exchange_free(struct consul_exchange *exchange) {
    size_t i;
    consul_exchange_stop(exchange);
    for (i = 0; i < 2; i++) {
        curl_easy_cleanup(exchange->attempts[i].curl);
        exchange->attempts[i].curl = NULL;
    }
}
