/*
 * Any line for the option parser; what it accepts becomes a registration that must be JSON.
 */
#define _GNU_SOURCE

#include "consul.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *value(const char *json);

static const char *string(const char *json) {
    for (json++; *json && *json != '"'; json++) {
        if ((unsigned char)*json < ' ')
            return NULL;
        if (*json == '\\' && !*++json)
            return NULL;
    }
    return *json == '"' ? json + 1 : NULL;
}

static const char *members(const char *json, char end, int named) {
    if (*json == end)
        return json + 1;
    for (;;) {
        if (named) {
            json = *json == '"' ? string(json) : NULL;
            if (!json || *json++ != ':')
                return NULL;
        }
        json = value(json);
        if (!json || (*json != ',' && *json != end))
            return NULL;
        if (*json++ == end)
            return json;
    }
}

/* As much of JSON as a registration may hold; returns what follows the value, or NULL. */
static const char *value(const char *json) {
    if (*json == '"')
        return string(json);
    if (*json == '{')
        return members(json + 1, '}', 1);
    if (*json == '[')
        return members(json + 1, ']', 0);
    if (!strncmp(json, "true", 4))
        return json + 4;
    if (!isdigit((unsigned char)*json))
        return NULL;
    while (isdigit((unsigned char)*json))
        json++;
    return json;
}

static void register_it(struct consul_options *options) {
    static struct consul_agent agent = {.owner = "0123456789abcdef0123456789abcdef"};
    struct consul_service service = {.options = *options, .agent = &agent};
    const char *end;
    char *json;
    char *url;
    if (!service.options.id)
        service.options.id = service.options.name;
    service.check = consul_options_check(&service.options);
    service.beat_urls[CONSUL_PASSING] = service.options.id;
    snprintf(service.note, sizeof(service.note), "%s", service.options.name);
    json = consul_registration_build(&service);
    url = consul_beat_build(&service);
    end = json && url ? value(json) : NULL;
    if (!end || *end)
        abort();
    free(json);
    free(url);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct consul_options options;
    char error[CONSUL_ERROR_SIZE];
    char *line = strndup((const char *)data, size);
    if (!line)
        return 0;
    if (consul_options_parse(&options, line, error)) {
        if (strchr(error, '\n'))
            abort();
    } else {
        register_it(&options);
        consul_options_free(&options);
    }
    free(line);
    return 0;
}
