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

/* The words of `list`: each a string, or KEY:VALUE as two, or KEY:VALUE as KEY and a list. */
enum words { STRINGS, PAIRS, LISTS };

static void add_words(FILE *json, const char *list, enum words are, const char *separator) {
    size_t length;
    for (; list && *list; list += length + (list[length] != 0)) {
        size_t key;
        length = strcspn(list, CONSUL_BETWEEN_WORDS);
        key = are == STRINGS ? length : strcspn(list, ":");
        fprintf(json, "%s\"", separator);
        consul_text_json(json, list, key);
        if (are != STRINGS) {
            fputs(are == LISTS ? "\":[\"" : "\":\"", json);
            consul_text_json(json, list + key + 1, length - key - 1);
        }
        fputs(are == LISTS ? "\"]" : "\"", json);
        separator = ",";
    }
}

static void add_tagged_addresses(FILE *json, const struct consul_options *options) {
    const char *list = options->tagged_addresses;
    const char *separator = ",\"TaggedAddresses\":{\"";
    struct consul_tagged tagged;
    size_t length;
    for (; list && *list; list += length + (list[length] != 0)) {
        length = strcspn(list, CONSUL_BETWEEN_WORDS);
        if (consul_options_tagged(&tagged, list, length))
            continue;
        fputs(separator, json);
        consul_text_json(json, tagged.tag, tagged.tag_length);
        fputs("\":{\"Address\":\"", json);
        consul_text_json(json, tagged.address, tagged.address_length);
        putc('"', json);
        if (tagged.port > 0 || options->port > 0)
            fprintf(json, ",\"Port\":%ld", tagged.port > 0 ? tagged.port : options->port);
        putc('}', json);
        separator = ",\"";
    }
    if (options->tagged_addresses)
        putc('}', json);
}

/* Where the agent finds the instance, for a check that it makes itself. */
static void add_target(FILE *json, const struct consul_options *options) {
    const char *host = options->check_address ? options->check_address
                       : options->address     ? options->address
                                              : "127.0.0.1";
    int bare = strchr(host, ':') && *host != '[';
    int http = consul_options_check(options) == CONSUL_CHECK_HTTP;
    if (http)
        fprintf(json, ",\"HTTP\":\"%s://", options->check[4] == 's' ? "https" : "http");
    else
        fputs(",\"TCP\":\"", json);
    fputs(bare ? "[" : "", json);
    consul_text_json(json, host, strlen(host));
    fprintf(json, "%s:%ld", bare ? "]" : "",
            options->check_port > 0 ? options->check_port : options->port);
    if (http)
        consul_text_json(json, consul_options_path(options), strlen(consul_options_path(options)));
    putc('"', json);
}

static void add_request(FILE *json, const struct consul_options *options) {
    if (options->check_method)
        add_string(json, ",\"Method\":\"", options->check_method);
    if (options->check_body)
        add_string(json, ",\"Body\":\"", options->check_body);
    if (options->check_tls_server_name)
        add_string(json, ",\"TLSServerName\":\"", options->check_tls_server_name);
    if (options->check_ssl_no_verify > 0)
        fputs(",\"TLSSkipVerify\":true", json);
    if (options->check_header) {
        fputs(",\"Header\":{", json);
        add_words(json, options->check_header, LISTS, "");
        putc('}', json);
    }
}

static void add_check(FILE *json, const struct consul_service *service) {
    const struct consul_options *options = &service->options;
    /* What has to succeed several times has not yet. */
    enum consul_status status =
        options->success_before_passing > 1 ? CONSUL_CRITICAL : service->status;
    fprintf(json, ",\"Check\":{\"Status\":\"%s\"", consul_status_names[status]);
    if (service->check == CONSUL_CHECK_TTL) {
        fprintf(json, ",\"TTL\":\"%lds\"", options->ttl);
    } else {
        add_target(json, options);
        add_request(json, options);
        fprintf(json, ",\"Interval\":\"%lds\",\"Timeout\":\"%lds\"", options->interval,
                options->timeout);
        if (options->success_before_passing > 0)
            fprintf(json, ",\"SuccessBeforePassing\":%ld", options->success_before_passing);
        if (options->failures_before_critical > 0)
            fprintf(json, ",\"FailuresBeforeCritical\":%ld", options->failures_before_critical);
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
        add_words(json, options->tags, STRINGS, "");
        putc(']', json);
    }
    add_tagged_addresses(json, options);
    add_string(json, ",\"Meta\":{\"" CONSUL_OWNER_KEY "\":\"", service->agent->owner);
    add_words(json, options->meta, PAIRS, ",");
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
