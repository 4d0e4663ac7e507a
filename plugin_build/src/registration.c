/* What an agent is sent: the registration of a service as JSON, and a beat as a URL. */
#define _GNU_SOURCE

#include "consul.h"

#include <string.h>

const char *const consul_status_names[CONSUL_STATUSES] = {"passing", "warning", "critical"};

static void add_field(struct consul_text *json, const char *before, const char *value) {
    consul_text_say(json, before);
    consul_text_json(json, value, strlen(value));
}

static void add_seconds(struct consul_text *json, const char *before, long seconds) {
    consul_text_say(json, before);
    consul_text_number(json, seconds);
    consul_text_say(json, "s\"");
}

/* The words of `list`, separated by blanks. */
static void add_tags(struct consul_text *json, const char *list) {
    const char *separator = "";
    consul_text_say(json, ",\"Tags\":[");
    for (list += strspn(list, " "); *list; list += strspn(list, " ")) {
        size_t length = strcspn(list, " ");
        consul_text_say(json, separator);
        consul_text_json(json, list, length);
        separator = ",";
        list += length;
    }
    consul_text_say(json, "]");
}

/* The words of `list`, each KEY:VALUE, after the owner. */
static void add_meta(struct consul_text *json, const char *list, const char *owner) {
    add_field(json, ",\"Meta\":{\"" CONSUL_OWNER_KEY "\":", owner);
    for (list += strspn(list, " "); *list; list += strspn(list, " ")) {
        size_t length = strcspn(list, " ");
        size_t name = strcspn(list, ":");
        consul_text_say(json, ",");
        consul_text_json(json, list, name);
        consul_text_say(json, ":");
        consul_text_json(json, list + name + 1, length - name - 1);
        list += length;
    }
    consul_text_say(json, "}");
}

/* Where the agent finds the instance, for a check that it makes itself. */
static void add_target(struct consul_text *json, const struct consul_options *options) {
    struct consul_text target = {0};
    const char *host = options->address ? options->address : "127.0.0.1";
    int bare = strchr(host, ':') && *host != '[';
    const char *path = options->check + strlen("http:");
    int http = consul_options_check(options) == CONSUL_CHECK_HTTP;
    consul_text_say(&target, http ? "http://" : "");
    consul_text_say(&target, bare ? "[" : "");
    consul_text_say(&target, host);
    consul_text_say(&target, bare ? "]:" : ":");
    consul_text_number(&target, options->port);
    consul_text_say(&target, http ? path : "");
    json->failed |= target.failed;
    if (!target.failed)
        add_field(json, http ? ",\"HTTP\":" : ",\"TCP\":", target.data);
    consul_text_free(&target);
}

static void add_check(struct consul_text *json, const struct consul_service *service) {
    const struct consul_options *options = &service->options;
    add_field(json, ",\"Check\":{\"Status\":", consul_status_names[service->status]);
    if (service->check == CONSUL_CHECK_TTL) {
        add_seconds(json, ",\"TTL\":\"", options->ttl);
    } else {
        add_target(json, options);
        add_seconds(json, ",\"Interval\":\"", options->interval);
        add_seconds(json, ",\"Timeout\":\"", options->timeout);
    }
    if (options->deregister_after)
        add_seconds(json, ",\"DeregisterCriticalServiceAfter\":\"", options->deregister_after);
    consul_text_say(json, "}");
}

void consul_registration_build(struct consul_text *json, const struct consul_service *service) {
    const struct consul_options *options = &service->options;
    consul_text_clear(json);
    add_field(json, "{\"Name\":", options->name);
    add_field(json, ",\"ID\":", options->id);
    if (options->address)
        add_field(json, ",\"Address\":", options->address);
    if (options->port > 0) {
        consul_text_say(json, ",\"Port\":");
        consul_text_number(json, options->port);
    }
    if (options->weight > 0) {
        consul_text_say(json, ",\"Weights\":{\"Warning\":1,\"Passing\":");
        consul_text_number(json, options->weight);
        consul_text_say(json, "}");
    }
    if (options->tags)
        add_tags(json, options->tags);
    add_meta(json, options->meta ? options->meta : "", service->agent->owner);
    add_check(json, service);
    consul_text_say(json, "}");
}

void consul_beat_build(struct consul_text *url, const struct consul_service *service) {
    const char *base = service->beat_urls[service->status];
    consul_text_clear(url);
    consul_text_say(url, base);
    consul_text_say(url, strchr(base, '?') ? "&note=" : "?note=");
    consul_text_url(url, service->note);
}
