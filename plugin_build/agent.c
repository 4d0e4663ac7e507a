/* The conversation with the Consul agent. */
#include "consul.h"

/* More of an answer than this is of no interest; the registration of one service is smaller. */
#define ANSWER_LIMIT 65536
#define TOKEN_LIMIT 512

/* Milliseconds; the agent is on the same host. */
#define CONNECT_TIMEOUT 1000L
#define TOTAL_TIMEOUT 3000L

struct answer {
    struct uwsgi_buffer *body;
};

static size_t keep_answer(char *data, size_t size, size_t count, void *target) {
    struct answer *answer = target;
    size_t length = size * count;
    /* The rest of a huge answer is taken from the socket and dropped. */
    if (answer->body->pos + length <= ANSWER_LIMIT &&
        uwsgi_buffer_append(answer->body, data, length))
        return 0;
    return length;
}

/* The first line of a token file, read anew each time so that it can be replaced. */
static int read_token(const char *path, char *token) {
    ssize_t length;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    length = read(fd, token, TOKEN_LIMIT - 1);
    close(fd);
    if (length < 0)
        return -1;
    token[length] = 0;
    token[strcspn(token, "\r\n")] = 0;
    return 0;
}

static struct curl_slist *headers_for(struct consul_service *service) {
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *more;
    char from_file[TOKEN_LIMIT] = "";
    char line[TOKEN_LIMIT + 32];
    const char *token = service->token;
    if (service->token_file && !read_token(service->token_file, from_file))
        token = from_file;
    if (!headers || !token || !*token)
        return headers;
    snprintf(line, sizeof(line), "X-Consul-Token: %s", token);
    more = curl_slist_append(headers, line);
    if (!more) {
        curl_slist_free_all(headers);
        return NULL;
    }
    return more;
}

static void prepare(CURL *curl, struct consul_service *service, const char *method, const char *url,
                    struct curl_slist *headers, struct answer *answer) {
    curl_easy_reset(curl);
    /* Without it libcurl uses SIGALRM, and signals are uWSGI's. */
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, TOTAL_TIMEOUT);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep_answer);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    if (service->ssl_no_verify) {
        curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 0L);
        curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L);
    }
}

/* The status of the answer as a word for the log: its code and the start of its body. */
static void describe(char *reason, const char *method, const char *url, long status,
                     struct uwsgi_buffer *body) {
    int length = body->pos < 100 ? (int)body->pos : 100;
    char *end = memchr(body->buf, '\n', (size_t)length);
    if (end)
        length = (int)(end - body->buf);
    snprintf(reason, CONSUL_REASON_LENGTH, "%s %s: HTTP %ld: %.*s", method, url, status, length,
             body->buf);
}

/* Sends one request; `body` may be NULL, `answer` keeps what came back. */
static int talk(CURL *curl, struct consul_service *service, const char *method, const char *url,
                struct uwsgi_buffer *body, struct answer *answer, char *reason) {
    CURLcode code;
    long status = 0;
    struct curl_slist *headers = headers_for(service);
    if (!headers) {
        snprintf(reason, CONSUL_REASON_LENGTH, "out of memory");
        return -1;
    }
    prepare(curl, service, method, url, headers, answer);
    if (body) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body->buf);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)body->pos);
    }
    code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    if (code != CURLE_OK) {
        snprintf(reason, CONSUL_REASON_LENGTH, "%s %s: %s", method, url, curl_easy_strerror(code));
        return -1;
    }
    if (service->debug)
        uwsgi_log("[consul] %s %s: HTTP %ld\n", method, url, status);
    if (status >= 200 && status < 300)
        return 0;
    describe(reason, method, url, status, answer->body);
    return (int)status;
}

static int request(CURL *curl, struct consul_service *service, const char *method, const char *url,
                   struct uwsgi_buffer *body, char *reason) {
    struct answer answer = {uwsgi_buffer_new(256)};
    int result = talk(curl, service, method, url, body, &answer, reason);
    uwsgi_buffer_destroy(answer.body);
    return result;
}

static int append(struct uwsgi_buffer *json, const char *text) {
    return uwsgi_buffer_append(json, (char *)text, strlen(text));
}

static int append_string(struct uwsgi_buffer *json, const char *text, size_t length) {
    return append(json, "\"") || uwsgi_buffer_append_json(json, (char *)text, length) ||
           append(json, "\"");
}

static int append_number(struct uwsgi_buffer *json, const char *before, long number,
                         const char *after) {
    return append(json, before) || uwsgi_buffer_num64(json, number) || append(json, after);
}

static int append_field(struct uwsgi_buffer *json, const char *before, const char *text) {
    return append(json, before) || append_string(json, text, strlen(text));
}

/* The words of `list`, separated by blanks, as members of a JSON list. */
static int append_tags(struct uwsgi_buffer *json, const char *list) {
    const char *separator = ",\"Tags\":[";
    for (list += strspn(list, " "); *list; list += strspn(list, " ")) {
        size_t length = strcspn(list, " ");
        if (append(json, separator) || append_string(json, list, length))
            return -1;
        separator = ",";
        list += length;
    }
    return *separator == ',' && separator[1] ? 0 : append(json, "]");
}

/* The words of `list`, each KEY:VALUE, and the owner, as a JSON object. */
static int append_meta(struct uwsgi_buffer *json, const char *list, const char *owner) {
    if (append_field(json, ",\"Meta\":{\"uwsgi_owner\":", owner))
        return -1;
    for (list += strspn(list, " "); *list; list += strspn(list, " ")) {
        size_t length = strcspn(list, " ");
        const char *colon = memchr(list, ':', length);
        size_t name = colon ? (size_t)(colon - list) : length;
        const char *value = colon ? colon + 1 : "";
        size_t rest = colon ? length - name - 1 : 0;
        if (append(json, ",") || append_string(json, list, name) || append(json, ":") ||
            append_string(json, value, rest))
            return -1;
        list += length;
    }
    return append(json, "}");
}

static int build_registration(struct uwsgi_buffer *json, struct consul_service *service) {
    if (append_field(json, "{\"Name\":", service->name) ||
        append_field(json, ",\"ID\":", service->id) ||
        (service->address && append_field(json, ",\"Address\":", service->address)) ||
        (service->port && append_number(json, ",\"Port\":", service->port, "")) ||
        (service->tags && append_tags(json, service->tags)) ||
        append_meta(json, service->meta ? service->meta : "", service->owner))
        return -1;
    /* Passing from the start: it is registered only when the workers are ready. */
    if (append_number(json, ",\"Check\":{\"Status\":\"passing\",\"TTL\":\"", service->ttl, "s\""))
        return -1;
    if (service->deregister_after && append_number(json, ",\"DeregisterCriticalServiceAfter\":\"",
                                                   service->deregister_after, "s\""))
        return -1;
    return append(json, "}}");
}

int consul_register(CURL *curl, struct consul_service *service, char *reason) {
    struct uwsgi_buffer *json = uwsgi_buffer_new(512);
    int result = -1;
    if (build_registration(json, service))
        snprintf(reason, CONSUL_REASON_LENGTH, "out of memory");
    else
        result = request(curl, service, "PUT", service->register_url, json, reason);
    uwsgi_buffer_destroy(json);
    return result;
}

int consul_beat(CURL *curl, struct consul_service *service, char *reason) {
    return request(curl, service, "PUT", service->check_url, NULL, reason);
}

int consul_deregister(CURL *curl, struct consul_service *service, char *reason) {
    return request(curl, service, "PUT", service->deregister_url, NULL, reason);
}

int consul_is_ours(CURL *curl, struct consul_service *service, char *reason) {
    struct answer answer = {uwsgi_buffer_new(1024)};
    int status = talk(curl, service, "GET", service->service_url, NULL, &answer, reason);
    int ours = -1;
    /* The owner is 128 random bits: it is in the answer only if it is the registration's. */
    if (status == 0)
        ours =
            memmem(answer.body->buf, answer.body->pos, service->owner, CONSUL_OWNER_LENGTH) != NULL;
    else if (status == 404)
        ours = 0;
    uwsgi_buffer_destroy(answer.body);
    return ours;
}
