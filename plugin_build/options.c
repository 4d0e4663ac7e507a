/* The consul-register option: key=value pairs, separated by commas. */
#include "consul.h"

#include <stddef.h>

#define OPTION "[consul] consul-register: "

enum kind { TEXT, NUMBER, SWITCH };

struct key {
    const char *name;
    enum kind kind;
    size_t offset;
    long min;
    long max;
};

#define TEXT_KEY(field)                                                                            \
    { #field, TEXT, offsetof(struct consul_service, field), 0, 0 }
#define NUMBER_KEY(field, min, max)                                                                \
    { #field, NUMBER, offsetof(struct consul_service, field), min, max }
#define SWITCH_KEY(field)                                                                          \
    { #field, SWITCH, offsetof(struct consul_service, field), 0, 1 }

static const struct key keys[] = {
    TEXT_KEY(name),
    TEXT_KEY(id),
    TEXT_KEY(address),
    TEXT_KEY(tags),
    TEXT_KEY(meta),
    TEXT_KEY(token),
    TEXT_KEY(token_file),
    TEXT_KEY(url),
    TEXT_KEY(register_url),
    TEXT_KEY(deregister_url),
    TEXT_KEY(check_url),
    NUMBER_KEY(port, 1, 65535),
    NUMBER_KEY(ttl, 1, 86400),
    /* Consul itself refuses less than a minute. */
    NUMBER_KEY(deregister_after, 60, 31536000),
    SWITCH_KEY(wait_workers),
    SWITCH_KEY(ssl_no_verify),
    SWITCH_KEY(debug),
};

/* Logs why the configuration is refused, and ends the start. */
static void refuse(const char *key, const char *value, const char *allowed) {
    /* A token must not get into a log. */
    if (value && !strcmp(key, "token"))
        value = "(hidden)";
    if (value)
        uwsgi_log(OPTION "%s=%s: %s\n", key, value, allowed);
    else
        uwsgi_log(OPTION "%s: %s\n", key, allowed);
    exit(1);
}

static const struct key *find_key(const char *name) {
    size_t i;
    for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (!strcmp(keys[i].name, name))
            return &keys[i];
    }
    return NULL;
}

/* Edit distance of two short words, for the nearest known key. */
static size_t distance(const char *a, const char *b) {
    size_t row[64];
    size_t i, j, la = strlen(a), lb = strlen(b);
    if (lb >= 63)
        return lb;
    for (j = 0; j <= lb; j++)
        row[j] = j;
    for (i = 1; i <= la; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (j = 1; j <= lb; j++) {
            size_t above = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[lb];
}

static void refuse_unknown(const char *name) {
    const char *nearest = keys[0].name;
    size_t i;
    for (i = 1; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (distance(keys[i].name, name) < distance(nearest, name))
            nearest = keys[i].name;
    }
    uwsgi_log(OPTION "unknown key '%s', did you mean '%s'?\n", name, nearest);
    exit(1);
}

static long parse_number(const struct key *key, const char *value) {
    char *end = NULL;
    char allowed[64];
    long number;
    errno = 0;
    number = strtol(value, &end, 10);
    if (errno || end == value || *end || number < key->min || number > key->max) {
        snprintf(allowed, sizeof(allowed), "must be a number from %ld to %ld", key->min, key->max);
        refuse(key->name, value, allowed);
    }
    return number;
}

static void set_key(struct consul_service *service, char *name, char *value) {
    const struct key *key = find_key(name);
    char *field;
    const char *c;
    if (!key) {
        refuse_unknown(name);
        return;
    }
    for (c = value; *c; c++) {
        if ((unsigned char)*c < ' ')
            refuse(name, NULL, "must not hold control characters");
    }
    field = (char *)service + key->offset;
    if (key->kind == TEXT)
        *(char **)field = value;
    else
        *(long *)field = parse_number(key, value);
}

/* Cuts the next pair off `*rest`; a backslash takes the meaning from a comma. */
static char *next_pair(char **rest) {
    char *pair = *rest, *from = pair, *to = pair;
    if (!pair || !*pair)
        return NULL;
    while (*from && *from != ',') {
        if (from[0] == '\\' && (from[1] == ',' || from[1] == '\\'))
            from++;
        *to++ = *from++;
    }
    *rest = *from ? from + 1 : from;
    *to = 0;
    return pair;
}

static char *default_url(const char *given, struct consul_service *service, const char *path) {
    size_t length = service->url ? strlen(service->url) : 0;
    if (given)
        return uwsgi_str((char *)given);
    /* http://host:8500/ and http://host:8500 mean the same. */
    while (length && service->url[length - 1] == '/')
        length--;
    return uwsgi_concat2n(service->url, (int)length, (char *)path, (int)strlen(path));
}

static void build_urls(struct consul_service *service) {
    char *id = curl_easy_escape(NULL, service->id, 0);
    char *path;
    if (!id) {
        uwsgi_log(OPTION "out of memory\n");
        exit(1);
    }
    service->register_url =
        default_url(service->register_url, service, "/v1/agent/service/register");
    path = uwsgi_concat2("/v1/agent/service/deregister/", id);
    service->deregister_url = default_url(service->deregister_url, service, path);
    free(path);
    path = uwsgi_concat2("/v1/agent/check/pass/service:", id);
    service->check_url = default_url(service->check_url, service, path);
    free(path);
    path = uwsgi_concat2("/v1/agent/service/", id);
    service->service_url = default_url(NULL, service, path);
    free(path);
    curl_free(id);
}

/* 128 random bits, in hexadecimal. */
static void make_owner(struct consul_service *service) {
    unsigned char random[CONSUL_OWNER_LENGTH / 2];
    size_t i;
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, random, sizeof(random)) != (ssize_t)sizeof(random)) {
        uwsgi_error(OPTION "/dev/urandom");
        exit(1);
    }
    close(fd);
    for (i = 0; i < sizeof(random); i++)
        snprintf(service->owner + 2 * i, 3, "%02x", random[i]);
}

struct consul_service *consul_parse(const char *value) {
    struct consul_service *service = uwsgi_calloc(sizeof(struct consul_service));
    char *rest = uwsgi_str((char *)value);
    char *pair;
    service->ttl = 30;
    service->wait_workers = 1;
    while ((pair = next_pair(&rest))) {
        char *equals = strchr(pair, '=');
        if (!*pair)
            continue;
        if (!equals)
            refuse(pair, NULL, "must be key=value");
        *equals = 0;
        set_key(service, pair, equals + 1);
    }
    if (!service->name || !*service->name)
        refuse("name", NULL, "is missing: the name of the service");
    if (!service->url && !(service->register_url && service->deregister_url && service->check_url))
        refuse("url", NULL, "is missing: the agent, as in url=http://127.0.0.1:8500");
    if (!service->id)
        service->id = service->name;
    if (service->token_file && access(service->token_file, R_OK))
        refuse("token_file", service->token_file, strerror(errno));
    build_urls(service);
    make_owner(service);
    return service;
}
