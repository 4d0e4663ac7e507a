/*
 * The services of all consul-register lines, completed with what Consul's own tools read
 * from the environment, checked together, and grouped by the agent that they are told to.
 */
#define _GNU_SOURCE

#include "consul.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define DEFAULT_URL "http://127.0.0.1:8500"
#define REGISTER_PATH "/v1/agent/service/register"
#define DEREGISTER_PATH "/v1/agent/service/deregister/"

static const char *from_environment(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static void default_number(long *number, long value) {
    if (*number < 0)
        *number = value;
}

static void complete_numbers(struct consul_options *options) {
    const char *verify = from_environment("CONSUL_HTTP_SSL_VERIFY");
    int skip = verify && (!strcmp(verify, "false") || !strcmp(verify, "0") || !strcmp(verify, "f"));
    default_number(&options->ttl, 30);
    default_number(&options->stuck_after, options->ttl);
    default_number(&options->interval, 10);
    default_number(&options->timeout, 10);
    default_number(&options->deregister_after, 3600);
    default_number(&options->drain, 1);
    default_number(&options->stop_timeout, 0);
    default_number(&options->connect_timeout, CONSUL_CONNECT_TIMEOUT / 1000);
    default_number(&options->worker_handler, 1);
    default_number(&options->wait_workers, 1);
    default_number(&options->ssl_no_verify, skip);
    default_number(&options->debug, 0);
}

static int out_of_memory(char *error) {
    snprintf(error, CONSUL_ERROR_SIZE, "out of memory");
    return -1;
}

static int refuse_url(char *error, const char *source, const char *url) {
    char shown[128];
    consul_url_line(url, shown, sizeof(shown));
    snprintf(error, CONSUL_ERROR_SIZE,
             "%s=%s: http://HOST:PORT, https://HOST:PORT or unix:///PATH is allowed", source,
             shown);
    return -1;
}

/* Splits where the agent is into a socket and the URL of its API, which `access` then owns. */
static int locate(struct consul_access *access, const char *source, const char *url, char *error) {
    const char *tls = from_environment("CONSUL_HTTP_SSL");
    const char *scheme = "";
    char *located;
    if (!strncasecmp(url, "unix://", 7)) {
        if (url[7] != '/')
            return refuse_url(error, source, url);
        access->socket = url + 7;
        url = "http://localhost";
    } else if (strstr(url, "://")) {
        if ((strncasecmp(url, "http://", 7) && strncasecmp(url, "https://", 8)) ||
            !strcspn(strstr(url, "://") + 3, "/?#"))
            return refuse_url(error, source, url);
    } else {
        /* As CONSUL_HTTP_ADDR may be: only HOST:PORT. */
        scheme = tls && (!strcmp(tls, "true") || !strcmp(tls, "1")) ? "https://" : "http://";
    }
    if (asprintf(&located, "%s%s", scheme, url) < 0)
        return out_of_memory(error);
    while (located[strlen(located) - 1] == '/')
        located[strlen(located) - 1] = 0;
    access->url = located;
    return 0;
}

/* uwsgi-consul's register_url & co. say by themselves where the API is, if they are as usual. */
static int locate_by_register_url(struct consul_access *access, const char *url, char *error) {
    size_t length = strlen(url);
    size_t path = strlen(REGISTER_PATH);
    char *place;
    int failed;
    if (length <= path || strcmp(url + length - path, REGISTER_PATH) ||
        !strncasecmp(url, "unix:", 5))
        return 0;
    /* Without a scheme it is HTTP, as to curl. */
    if (asprintf(&place, "%s%.*s", strstr(url, "://") ? "" : "http://", (int)(length - path), url) <
        0)
        return out_of_memory(error);
    failed = locate(access, "register_url", place, error);
    free(place);
    return failed;
}

static int find_agent_url(struct consul_access *access, const struct consul_options *options,
                          char *error) {
    const char *address = from_environment("CONSUL_HTTP_ADDR");
    if (options->url)
        return locate(access, "url", options->url, error);
    if (options->register_url && options->deregister_url && options->check_url)
        return locate_by_register_url(access, options->register_url, error);
    if (address)
        return locate(access, "CONSUL_HTTP_ADDR", address, error);
    return locate(access, "url", DEFAULT_URL, error);
}

/* A file by key, or by the environment, with the name of where it comes from in errors. */
static int find_file(const char **file, const char *path, const char *key, const char *variable,
                     char *error) {
    int fd;
    *file = path ? path : from_environment(variable);
    if (!*file)
        return 0;
    fd = open(*file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        snprintf(error, CONSUL_ERROR_SIZE, "%s=%.256s: a readable file is required: %s",
                 path ? key : variable, *file, strerror(errno));
        return -1;
    }
    close(fd);
    return 0;
}

static int find_token(struct consul_access *access, const struct consul_options *options,
                      char *error) {
    access->token = options->token;
    if (access->token)
        return 0;
    if (find_file(&access->token_file, options->token_file, "token_file", "CONSUL_HTTP_TOKEN_FILE",
                  error))
        return -1;
    if (access->token_file)
        return 0;
    access->token = from_environment("CONSUL_HTTP_TOKEN");
    if (access->token &&
        (strlen(access->token) >= CONSUL_TOKEN_SIZE || strpbrk(access->token, "\r\n"))) {
        snprintf(error, CONSUL_ERROR_SIZE,
                 "CONSUL_HTTP_TOKEN=(hidden): one line of up to 511 characters is allowed");
        return -1;
    }
    return 0;
}

/* As the environment says it, and never for loopback. */
static int find_no_proxy(struct consul_access *access, char *error) {
    static char *joined;
    const char *lower = from_environment("no_proxy");
    const char *given = lower ? lower : from_environment("NO_PROXY");
    if (!joined &&
        asprintf(&joined, "%s%s%s", given ? given : "", given ? "," : "", CONSUL_NO_PROXY) < 0) {
        joined = NULL;
        return out_of_memory(error);
    }
    access->no_proxy = given && !strcmp(given, "*") ? "*" : joined;
    return 0;
}

static int find_access(struct consul_access *access, const struct consul_options *options,
                       char *error) {
    memset(access, 0, sizeof(*access));
    access->ssl_no_verify = options->ssl_no_verify > 0;
    access->connect_timeout = options->connect_timeout * 1000;
    if (find_no_proxy(access, error))
        return -1;
    if (find_agent_url(access, options, error) || find_token(access, options, error) ||
        find_file(&access->ca_file, options->ca_file, "ca_file", "CONSUL_CACERT", error) ||
        find_file(&access->cert_file, options->cert_file, "cert_file", "CONSUL_CLIENT_CERT",
                  error) ||
        find_file(&access->key_file, options->key_file, "key_file", "CONSUL_CLIENT_KEY", error))
        return -1;
    return 0;
}

static int same(const char *a, const char *b) {
    return a == b || (a && b && !strcmp(a, b));
}

int consul_same_place(const struct consul_access *a, const struct consul_access *b) {
    return same(a->url, b->url) && same(a->socket, b->socket);
}

static int same_credentials(const struct consul_access *a, const struct consul_access *b) {
    return consul_same_place(a, b) && same(a->token, b->token) &&
           same(a->token_file, b->token_file) && same(a->ca_file, b->ca_file) &&
           same(a->cert_file, b->cert_file) && same(a->key_file, b->key_file) &&
           a->ssl_no_verify == b->ssl_no_verify;
}

static int same_access(const struct consul_access *a, const struct consul_access *b) {
    return same_credentials(a, b) && a->connect_timeout == b->connect_timeout;
}

static void name_agent(struct consul_agent *agent, const struct consul_service *service) {
    if (agent->access.socket)
        snprintf(agent->label, sizeof(agent->label), "unix://%s", agent->access.socket);
    else
        consul_url_line(agent->access.url ? agent->access.url : service->options.register_url,
                        agent->label, sizeof(agent->label));
}

/* Our services only: an agent may have thousands of others. */
static int build_list_url(struct consul_agent *agent, const char *owner, char *error) {
    if (agent->access.url &&
        asprintf(&agent->list_url,
                 "%s/v1/agent/services?filter=Meta." CONSUL_OWNER_KEY "%%20%%3D%%3D%%20%%22%s%%22",
                 agent->access.url, owner) < 0)
        return out_of_memory(error);
    return 0;
}

/* The agent for this access. Takes over `access`. */
static struct consul_agent *find_agent(struct consul_plugin *plugin, struct consul_access *access,
                                       const struct consul_service *service,
                                       int (*is_same)(const struct consul_access *,
                                                      const struct consul_access *),
                                       char *error) {
    struct consul_agent **last = &plugin->agents;
    for (; *last; last = &(*last)->next) {
        if (is_same(&(*last)->access, access)) {
            free((void *)(uintptr_t)access->url);
            return *last;
        }
    }
    *last = calloc(1, sizeof(struct consul_agent));
    if (!*last) {
        out_of_memory(error);
        return NULL;
    }
    (*last)->access = *access;
    (*last)->owner = plugin->owner;
    (*last)->first = plugin->agents;
    name_agent(*last, service);
    return build_list_url(*last, plugin->owner, error) ? NULL : *last;
}

/* `given` by the user, or the agent's URL and a path. */
static int build_url(char **url, const char *given, const char *agent, const char *path,
                     const char *id, char *error) {
    size_t length;
    FILE *text;
    if (!given && !agent)
        return 0;
    text = open_memstream(url, &length);
    if (!text)
        return out_of_memory(error);
    fprintf(text, "%s%s", given ? given : agent, given ? "" : path);
    consul_text_url(text, given ? "" : id);
    return consul_text_end(text, url) ? out_of_memory(error) : 0;
}

/* check_url is where "passing" goes; the other two statuses have a neighbouring URL. */
static int build_beat_urls(struct consul_service *service, const char *agent, char *error) {
    static const char pass[] = "/check/pass/";
    static const char *const others[] = {NULL, "/check/warn/", "/check/fail/"};
    const char *place;
    size_t i;
    if (build_url(&service->beat_urls[CONSUL_PASSING], service->options.check_url, agent,
                  "/v1/agent/check/pass/service:", service->options.id, error))
        return -1;
    place = strstr(service->beat_urls[CONSUL_PASSING], pass);
    if (!place)
        return 0;
    for (i = CONSUL_WARNING; i <= CONSUL_CRITICAL; i++) {
        const char *passing = service->beat_urls[CONSUL_PASSING];
        if (asprintf(&service->beat_urls[i], "%.*s%s%s", (int)(place - passing), passing, others[i],
                     place + sizeof(pass) - 1) < 0)
            return out_of_memory(error);
    }
    return 0;
}

static int build_urls(struct consul_service *service, char *error) {
    const struct consul_options *options = &service->options;
    const char *agent = service->agent->access.url;
    if (build_url(&service->register_url, options->register_url, agent, REGISTER_PATH, "", error) ||
        build_url(&service->deregister_url, options->deregister_url, agent, DEREGISTER_PATH,
                  options->id, error) ||
        build_url(&service->lookup_url, NULL, agent, "/v1/agent/service/", options->id, error) ||
        build_beat_urls(service, agent, error))
        return -1;
    service->talk.can_look_up = service->lookup_url != NULL;
    return 0;
}

static int check_unique(const struct consul_plugin *plugin, const struct consul_service *service,
                        char *error) {
    const struct consul_service *other;
    for (other = plugin->services; other != service; other = other->next) {
        if (!strcmp(other->register_url, service->register_url) &&
            same(other->agent->access.socket, service->agent->access.socket) &&
            !strcmp(other->options.id, service->options.id)) {
            snprintf(error, CONSUL_ERROR_SIZE,
                     "id=%.256s: is there twice, each service of an instance needs an id of its "
                     "own (without one it is the name)",
                     service->options.id);
            return -1;
        }
    }
    return 0;
}

static int complete_service(struct consul_plugin *plugin, struct consul_service *service,
                            char *error) {
    struct consul_access access;
    complete_numbers(&service->options);
    service->check = consul_options_check(&service->options);
    if (!service->options.id)
        service->options.id = service->options.name;
    if (find_access(&access, &service->options, error))
        return -1;
    service->agent = find_agent(plugin, &access, service, same_access, error);
    if (!service->agent)
        return -1;
    if (service->options.debug)
        service->agent->debug = 1;
    service->talk.state = CONSUL_ABSENT;
    service->talk.wait_workers = (int)service->options.wait_workers;
    if (service->check == CONSUL_CHECK_TTL)
        service->talk.beat_interval = service->options.ttl * 1000 / 3;
    return build_urls(service, error) || check_unique(plugin, service, error) ? -1 : 0;
}

static int make_owner(struct consul_plugin *plugin, char *error) {
    unsigned char random[CONSUL_OWNER_LENGTH / 2];
    size_t i;
    /* Not from /dev/urandom, which is not there in many a chroot. */
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        snprintf(error, CONSUL_ERROR_SIZE, "no random bytes can be had: %s", strerror(errno));
        return -1;
    }
    for (i = 0; i < sizeof(random); i++)
        snprintf(plugin->owner + 2 * i, 3, "%02x", random[i]);
    return 0;
}

/* ---- over a reload ---- */

/*
 * A reload replaces the program of this process, but the services stay registered, and stay
 * its own. So their owner goes from one program to the next, and a line for each of them with
 * its fields: where the agent is, the service's id there, and how the agent is spoken to. A
 * program of the version before writes the first two of them.
 */
enum field { URL, ID, TOKEN, TOKEN_FILE, CA_FILE, CERT_FILE, KEY_FILE, SSL_NO_VERIFY, FIELDS };

/* What can't be in a field is as good as not there. */
static void add_field(FILE *text, const char *value) {
    fprintf(text, "\t%s", value && !strpbrk(value, "\t\n") ? value : "");
}

char *consul_settings_export(const struct consul_plugin *plugin) {
    const struct consul_service *service;
    char *value = NULL;
    size_t length;
    FILE *text = open_memstream(&value, &length);
    if (!text)
        return NULL;
    fputs(plugin->owner, text);
    for (service = plugin->services; service; service = service->next) {
        const struct consul_access *access = &service->agent->access;
        if (!access->url || service->talk.state == CONSUL_GONE)
            continue;
        fprintf(text, "\n%s%s", access->socket ? "unix://" : "",
                access->socket ? access->socket : access->url);
        add_field(text, service->options.id);
        add_field(text, access->token);
        add_field(text, access->token_file);
        add_field(text, access->ca_file);
        add_field(text, access->cert_file);
        add_field(text, access->key_file);
        add_field(text, access->ssl_no_verify ? "1" : "0");
    }
    return consul_text_end(text, &value) ? NULL : value;
}

/* Splits the line in place; fields that are not there or empty are NULL. */
static void split_fields(char *line, char *fields[FIELDS]) {
    size_t i;
    for (i = 0; i < FIELDS; i++) {
        char *field = strsep(&line, "\t");
        fields[i] = field && *field ? field : NULL;
    }
}

/* The service of the present configuration that is the one that was exported. */
static struct consul_service *find_service(const struct consul_plugin *plugin,
                                           const struct consul_access *access, const char *id) {
    struct consul_service *service;
    for (service = plugin->services; service; service = service->next) {
        if (!strcmp(service->options.id, id) && consul_same_place(&service->agent->access, access))
            return service;
    }
    return NULL;
}

static void add_service(struct consul_plugin *plugin, struct consul_service *service) {
    struct consul_service **last = &plugin->services;
    while (*last)
        last = &(*last)->next;
    *last = service;
}

/* A service that the present configuration does not have, with the access that it had. */
static int add_leftover(struct consul_plugin *plugin, const struct consul_options *options,
                        struct consul_access *access, char *error) {
    struct consul_service *service = calloc(1, sizeof(struct consul_service));
    if (!service)
        return out_of_memory(error);
    service->options = *options;
    service->agent = find_agent(plugin, access, service, same_credentials, error);
    if (!service->agent || build_urls(service, error))
        return -1;
    service->talk.state = CONSUL_UNWANTED_UNVERIFIED;
    add_service(plugin, service);
    return 0;
}

/* The line is kept: the service's strings are in it. */
static int import_service(struct consul_plugin *plugin, char *line, char *error) {
    struct consul_options options = {.ttl = 30, .stuck_after = 30, .worker_handler = 1};
    struct consul_access access;
    struct consul_service *service;
    char *fields[FIELDS];
    split_fields(line, fields);
    if (!fields[URL] || !fields[ID])
        return 0;
    options.url = fields[URL];
    options.id = fields[ID];
    memset(&access, 0, sizeof(access));
    if (find_no_proxy(&access, error))
        return -1;
    /* Only a version that took what this one does not has written such a line. */
    if (locate(&access, "url", options.url, error))
        return 0;
    access.token = fields[TOKEN];
    access.token_file = fields[TOKEN_FILE];
    access.ca_file = fields[CA_FILE];
    access.cert_file = fields[CERT_FILE];
    access.key_file = fields[KEY_FILE];
    access.ssl_no_verify = fields[SSL_NO_VERIFY] && *fields[SSL_NO_VERIFY] == '1';
    service = find_service(plugin, &access, options.id);
    if (!service)
        return add_leftover(plugin, &options, &access, error);
    service->talk.state = CONSUL_OUTDATED_UNVERIFIED;
    free((void *)(uintptr_t)access.url);
    return 0;
}

/* The text is kept. */
static int import_services(struct consul_plugin *plugin, char *lines, char *error) {
    char *line = strsep(&lines, "\n");
    memcpy(plugin->owner, line, CONSUL_OWNER_LENGTH);
    plugin->imported = 1;
    while ((line = strsep(&lines, "\n"))) {
        if (import_service(plugin, line, error))
            return -1;
    }
    return 0;
}

int consul_settings_complete(struct consul_plugin *plugin, const char *handover, char *error) {
    struct consul_service *service;
    char *lines = NULL;
    if (handover && strcspn(handover, "\n") == CONSUL_OWNER_LENGTH) {
        lines = strdup(handover);
        if (!lines)
            return out_of_memory(error);
        memcpy(plugin->owner, lines, CONSUL_OWNER_LENGTH);
    } else if (!plugin->services) {
        return 0;
    } else if (make_owner(plugin, error)) {
        return -1;
    }
    for (service = plugin->services; service; service = service->next) {
        if (complete_service(plugin, service, error))
            return -1;
    }
    /* Without a service of its own there may still be one to deregister. */
    return lines ? import_services(plugin, lines, error) : 0;
}
