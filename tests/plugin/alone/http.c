/*
 * The plugin's HTTP alone: one exchange with the agent at a URL, as the plugin's thread does it.
 *   http METHOD URL OWNER TOKEN [BODY]
 * Prints the status, how often the answer names the owner, the seconds that it took, how many
 * attempts were made, the error's number, and the error or the beginning of the answer.
 */
#include "http.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static int64_t now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (int64_t)moment.tv_sec * 1000 + moment.tv_nsec / 1000000;
}

/* Waits for the exchange's end; returns 0 if it was given up. */
static int finish(struct consul_exchange *exchange, CURLM *multi, int *attempts) {
    for (;;) {
        int64_t before = exchange->attempt_at;
        int64_t until = consul_exchange_watch(exchange, now());
        int count;
        if (!until)
            return 0;
        *attempts += exchange->attempt_at != before;
        if (curl_multi_wait(multi, NULL, 0, 50, NULL) != CURLM_OK ||
            curl_multi_perform(multi, &count) != CURLM_OK)
            return 0;
        if (consul_exchange_ended(multi) == exchange)
            return 1;
    }
}

static void print(const struct consul_exchange *exchange, const char *token, int ended,
                  int attempts) {
    char line[128] = "";
    double seconds = (double)(now() - exchange->started_at) / 1000;
    const char *text = line;
    if (!ended)
        text = "given up";
    else if (!exchange->http)
        text = exchange->reason;
    else
        consul_answer_line(exchange->answer, token, line, sizeof(line));
    printf("%ld %zu %.3f %d %d %s\n", ended ? exchange->http : 0,
           ended ? exchange->answer->owners : 0, seconds, attempts, ended ? exchange->error : 0,
           text);
}

static int converse(CURLM *multi, const struct consul_request *request) {
    static struct consul_exchange exchange;
    int attempts = 1;
    int ended;
    if (consul_exchange_start(&exchange, multi, request, now()))
        return 1;
    ended = finish(&exchange, multi, &attempts);
    print(&exchange, request->token, ended, attempts);
    consul_exchange_free(&exchange);
    return 0;
}

int main(int argc, char **argv) {
    static const struct consul_access access;
    struct consul_request request = {.access = &access};
    CURLM *multi;
    int result;
    if (argc < 5 || curl_global_init(CURL_GLOBAL_ALL))
        return 2;
    request.method = argv[1];
    request.url = argv[2];
    request.owner = argv[3];
    request.token = argv[4];
    request.body = argc > 5 ? argv[5] : NULL;
    multi = curl_multi_init();
    result = multi ? converse(multi, &request) : 2;
    curl_multi_cleanup(multi);
    curl_global_cleanup();
    return result;
}
