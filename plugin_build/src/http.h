/* HTTP requests that never block, and what is read from their answers; without uWSGI. */
#ifndef CONSUL_HTTP_H
#define CONSUL_HTTP_H

#include <curl/curl.h>
#include <stddef.h>
#include <stdint.h>

/* ---- answer.c ---- */

#define CONSUL_EXCERPT_SIZE 512

/* Any answer is reduced, as it comes in, to how often it names an owner and how it begins. */
struct consul_answer {
    const char *owner;
    size_t matched;
    size_t owners;
    size_t length;
    size_t excerpt_length;
    char excerpt[CONSUL_EXCERPT_SIZE];
};

void consul_answer_start(struct consul_answer *answer, const char *owner);
void consul_answer_feed(struct consul_answer *answer, const char *data, size_t length);
/* The beginning of the answer, fit for a log line. */
void consul_answer_line(const struct consul_answer *answer, const char *secret, char *line,
                        size_t size);

/* ---- curl.c ---- */

/* Before anything else of libcurl. Returns NULL, or why there is none. */
const char *consul_curl_load(void);

/* ---- http.c ---- */

#define CONSUL_TOKEN_SIZE 512

/* How to reach an agent: the same for all services that agree in it. */
struct consul_access {
    const char *url;    /* where the API is, without a slash at the end; NULL if not known */
    const char *socket; /* the path of a unix socket, or NULL */
    const char *token;
    const char *token_file;
    const char *ca_file;
    const char *cert_file;
    const char *key_file;
    int ssl_no_verify;
    const char
        *no_proxy; /* which hosts no proxy is for, as curl takes it; NULL for loopback only */
    long connect_timeout; /* milliseconds, 0 for CONSUL_CONNECT_TIMEOUT */
};

#define CONSUL_NO_PROXY "localhost,127.0.0.1,::1"
#define CONSUL_CONNECT_TIMEOUT 5000

/* A token that comes from a file is read again when the file changes. */
struct consul_token {
    char text[CONSUL_TOKEN_SIZE];
    int64_t stamp[4];
    int missing;
};

/* Returns 1 if the token is another one than before. */
int consul_token_refresh(struct consul_token *token, const struct consul_access *access);

struct consul_request {
    const struct consul_access *access;
    const char *token;
    const char *method;
    const char *url;
    const char *body;  /* or NULL */
    const char *owner; /* to count in the answer */
};

struct consul_attempt {
    CURL *curl;
    struct curl_slist *headers;
    struct consul_answer answer;
    struct consul_exchange *exchange;
    int active;
};

/*
 * One request and its answer. A request that hangs is not given up at once: an agent that was
 * stopped or is slow may still answer it. But one that answers new requests only is not waited
 * for either, so there is a second attempt beside the first. All requests may be repeated
 * without harm. What it points to has to live until it ended.
 */
struct consul_exchange {
    struct consul_attempt attempts[2];
    struct consul_request request;
    CURLM *multi;
    void *context; /* the caller's */
    int64_t started_at;
    int64_t attempt_at;

    /* Once it ended: */
    long http; /* 0 without an answer */
    const struct consul_answer *answer;
    int error; /* a number for each reason */
    int too_long;
    const char *reason;
};

/* Returns 0, or -1 if there is no memory for it. */
int consul_exchange_start(struct consul_exchange *exchange, CURLM *multi,
                          const struct consul_request *request, int64_t now);
/* Makes another attempt when it is time; returns when to come back, or 0 if it was given up. */
int64_t consul_exchange_watch(struct consul_exchange *exchange, int64_t now);
/* The next one that ended by itself since the multi handle performed, or NULL. */
struct consul_exchange *consul_exchange_ended(CURLM *multi);
void consul_exchange_stop(struct consul_exchange *exchange);
void consul_exchange_free(struct consul_exchange *exchange);
/* In a child: what it inherited of connections would keep them open at the agent. */
void consul_connections_drop(void);

#endif
