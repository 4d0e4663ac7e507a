/* What an agent is sent: the registration of a service as JSON, and a beat as a URL. */
#define _GNU_SOURCE

#include "consul.h"

#include <string.h>

const char *const consul_status_names[CONSUL_STATUSES] = {"passing", "warning", "critical"};

static void add_string(FILE *json, const char *before, const char *value) {
    fputs(before, json);
    consul_text_json(json, value, strlen(value));
    putc('"', json);
}

/* The words of `list`, separated by blanks: each a string, or KEY:VALUE as two. */
static void add_words(FILE *json, const char *list, int are_pairs, const char *separator) {
    for (list += strspn(list, " "); *list; list += strspn(list, " ")) {
        size_t length = strcspn(list, " ");
        size_t key = are_pairs ? strcspn(list, ":") : length;
        fprintf(json, "%s\"", separator);
        consul_text_json(json, list, key);
        if (are_pairs) {
            fputs("\":\"", json);
            consul_text_json(json, list + key + 1, length - key - 1);
        }
        putc('"', json);
        separator = ",";
        list += length;
    }
}

/* Where the agent finds the instance, for a check that it makes itself. */
static void add_target(FILE *json, const struct consul_options *options) {
    const char *host = options->address ? options->address : "127.0.0.1";
    int bare = strchr(host, ':') && *host != '[';
    int http = consul_options_check(options) == CONSUL_CHECK_HTTP;
    fprintf(json, ",\"%s%s", http ? "HTTP\":\"http://" : "TCP\":\"", bare ? "[" : "");
    consul_text_json(json, host, strlen(host));
    fprintf(json, "%s:%ld", bare ? "]" : "", options->port);
    if (http)
        consul_text_json(json, options->check + strlen("http:"),
                         strlen(options->check) - strlen("http:"));
    putc('"', json);
}

static void add_check(FILE *json, const struct consul_service *service) {
    const struct consul_options *options = &service->options;
    fprintf(json, ",\"Check\":{\"Status\":\"%s\"", consul_status_names[service->status]);
    if (service->check == CONSUL_CHECK_TTL) {
        fprintf(json, ",\"TTL\":\"%lds\"", options->ttl);
    } else {
        add_target(json, options);
        fprintf(json, ",\"Interval\":\"%lds\",\"Timeout\":\"%lds\"", options->interval,
                options->timeout);
    }
    if (options->deregister_after)
        fprintf(json, ",\"DeregisterCriticalServiceAfter\":\"%lds\"", options->deregister_after);
    putc('}', json);
}

char *consul_registration_build(const struct consul_service *service) {
    const struct consul_options *options = &service->options;
    char *data = NULL;
    size_t length;
    FILE *json = open_memstream(&data, &length);
    if (!json)
        return NULL;
    add_string(json, "{\"Name\":\"", options->name);
    add_string(json, ",\"ID\":\"", options->id);
    if (options->address)
        add_string(json, ",\"Address\":\"", options->address);
    if (options->port > 0)
        fprintf(json, ",\"Port\":%ld", options->port);
    if (options->weight > 0)
        fprintf(json, ",\"Weights\":{\"Warning\":1,\"Passing\":%ld}", options->weight);
    if (options->tags) {
        fputs(",\"Tags\":[", json);
        add_words(json, options->tags, 0, "");
        putc(']', json);
    }
    add_string(json, ",\"Meta\":{\"" CONSUL_OWNER_KEY "\":\"", service->agent->owner);
    add_words(json, options->meta ? options->meta : "", 1, ",");
    putc('}', json);
    add_check(json, service);
    putc('}', json);
    return consul_text_end(json, &data) ? NULL : data;
}

char *consul_beat_build(const struct consul_service *service) {
    const char *base = service->beat_urls[service->status];
    char *data = NULL;
    size_t length;
    FILE *url = open_memstream(&data, &length);
    if (!url)
        return NULL;
    fprintf(url, "%s%cnote=", base, strchr(base, '?') ? '&' : '?');
    consul_text_url(url, service->note);
    return consul_text_end(url, &data) ? NULL : data;
}
