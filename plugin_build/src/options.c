/*
 * The value of consul-register: key=value pairs, separated by commas. As in uWSGI's own
 * options of that form, a backslash takes any special meaning from the character after it.
 * A value that is a list of words has a second level of that: a backslash before a blank.
 */
#define _GNU_SOURCE

#include "consul.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define A_YEAR 31536000L

enum kind { TEXT, LIST, NUMBER, SWITCH };

struct key {
    const char *name;
    enum kind kind;
    size_t offset;
    long min;
    long max;
};

#define TEXT_KEY(field)                                                                            \
    { #field, TEXT, offsetof(struct consul_options, field), 0, 0 }
#define LIST_KEY(field)                                                                            \
    { #field, LIST, offsetof(struct consul_options, field), 0, 0 }
#define NUMBER_KEY(field, min, max)                                                                \
    { #field, NUMBER, offsetof(struct consul_options, field), min, max }
#define SWITCH_KEY(field)                                                                          \
    { #field, SWITCH, offsetof(struct consul_options, field), 0, 1 }

static const struct key keys[] = {
    TEXT_KEY(name),
    TEXT_KEY(id),
    TEXT_KEY(address),
    LIST_KEY(tags),
    LIST_KEY(meta),
    LIST_KEY(tagged_addresses),
    TEXT_KEY(token),
    TEXT_KEY(token_file),
    TEXT_KEY(url),
    TEXT_KEY(register_url),
    TEXT_KEY(deregister_url),
    TEXT_KEY(check_url),
    TEXT_KEY(check),
    TEXT_KEY(check_address),
    TEXT_KEY(check_method),
    LIST_KEY(check_header),
    TEXT_KEY(check_body),
    TEXT_KEY(check_tls_server_name),
    TEXT_KEY(ca_file),
    TEXT_KEY(cert_file),
    TEXT_KEY(key_file),
    NUMBER_KEY(port, 1, 65535),
    NUMBER_KEY(ttl, 1, 86400),
    NUMBER_KEY(stuck_after, 1, 86400),
    NUMBER_KEY(interval, 1, 86400),
    NUMBER_KEY(timeout, 1, 86400),
    NUMBER_KEY(check_port, 1, 65535),
    NUMBER_KEY(success_before_passing, 1, 1000),
    NUMBER_KEY(failures_before_critical, 1, 1000),
    NUMBER_KEY(deregister_after, 0, A_YEAR),
    NUMBER_KEY(drain, 0, 3600),
    NUMBER_KEY(stop_timeout, 0, 3600),
    NUMBER_KEY(weight, 1, 65535),
    NUMBER_KEY(connect_timeout, 1, 60),
    SWITCH_KEY(wait_workers),
    SWITCH_KEY(worker_handler),
    SWITCH_KEY(check_ssl_no_verify),
    SWITCH_KEY(ssl_no_verify),
    SWITCH_KEY(debug),
};

static char **text_field(struct consul_options *options, const struct key *key) {
    return (char **)(void *)((char *)options + key->offset);
}

static long *number_field(struct consul_options *options, const struct key *key) {
    return (long *)(void *)((char *)options + key->offset);
}

/* Edit distance of two words; `b` is short. */
static size_t distance(const char *a, const char *b) {
    size_t row[32];
    size_t i, j;
    size_t length = strlen(b);
    for (j = 0; j <= length; j++)
        row[j] = j;
    for (i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (j = 1; j <= length; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[length];
}

static const struct key *nearest_key(const char *name) {
    const struct key *nearest = &keys[0];
    size_t i;
    for (i = 1; i < LENGTH(keys); i++) {
        if (distance(name, keys[i].name) < distance(name, nearest->name))
            nearest = &keys[i];
    }
    return nearest;
}

static const struct key *find_key(const char *name) {
    size_t i;
    for (i = 0; i < LENGTH(keys); i++) {
        if (!strcmp(keys[i].name, name))
            return &keys[i];
    }
    return NULL;
}

/* A token is not repeated in a log, and neither is what may be a mistyped key with a token. */
static int may_be_secret(const char *name) {
    if (!strcmp(name, "token_file"))
        return 0;
    if (!strcmp(name, "check_header") || !strcmp(name, "check_body"))
        return 1;
    return distance(name, "token") <= 3 || strstr(name, "tok") || strstr(name, "pass") ||
           strstr(name, "sec");
}

static int refuse(char *error, const char *name, const char *value, const char *allowed) {
    char shown[128];
    if (may_be_secret(name))
        snprintf(shown, sizeof(shown), "(hidden)");
    else
        consul_url_line(value, shown, sizeof(shown));
    snprintf(error, CONSUL_ERROR_SIZE, "%.64s=%s: %.256s", name, shown, allowed);
    return -1;
}

static int refuse_word(char *error, const char *name, const char *word, size_t length,
                       const char *allowed) {
    char shown[128];
    snprintf(shown, sizeof(shown), "%.*s", length < 100 ? (int)length : 100, word);
    return refuse(error, name, shown, allowed);
}

static int refuse_unknown(char *error, const char *name, const char *value) {
    char allowed[96];
    char check[32];
    const char *meant = nearest_key(name)->name;
    snprintf(check, sizeof(check), "check_%.20s", name);
    if (!strcmp(name, "host"))
        meant = "address, or check_header=Host:NAME";
    else if (find_key(check))
        meant = check;
    snprintf(allowed, sizeof(allowed), "no such key, did you mean %s?", meant);
    return refuse(error, name, value, allowed);
}

/* The length of the UTF-8 character that `s` begins with, 0 if it is none, or a control one. */
static size_t character(const unsigned char *s) {
    size_t i;
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] < 0x20 || s[0] == 0x7f || (s[0] >= 0x80 && s[0] < 0xc2) || s[0] > 0xf4)
        return 0;
    for (i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Overlong forms, surrogates, and what is beyond Unicode. */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return length;
}

static int is_text(const char *value) {
    const unsigned char *s = (const unsigned char *)value;
    while (*s) {
        size_t length = character(s);
        if (!length)
            return 0;
        s += length;
    }
    return 1;
}

static int set_number(struct consul_options *options, const struct key *key, const char *value,
                      char *error) {
    char allowed[96];
    char *end = NULL;
    long number;
    errno = 0;
    number = strtol(value, &end, 10);
    /* strtol() would also take a sign and blanks before the digits. */
    if (!errno && end != value && !*end && *value >= '0' && *value <= '9' && number >= key->min &&
        number <= key->max) {
        *number_field(options, key) = number;
        return 0;
    }
    snprintf(allowed, sizeof(allowed), "a number from %ld to %ld is allowed", key->min, key->max);
    return refuse(error, key->name, value, allowed);
}

/* uwsgi-consul takes any number; above 0 means yes. */
static int set_switch(struct consul_options *options, const struct key *key, const char *value,
                      char *error) {
    static const char *const words[][2] = {
        {"false", "true"}, {"no", "yes"}, {"off", "on"}, {"disabled", "enabled"}};
    char *end = NULL;
    long number = strtol(value, &end, 10);
    size_t i;
    if (end != value && !*end) {
        *number_field(options, key) = number > 0;
        return 0;
    }
    for (i = 0; i < LENGTH(words); i++) {
        if (!strcmp(value, words[i][0]) || !strcmp(value, words[i][1])) {
            *number_field(options, key) = !strcmp(value, words[i][1]);
            return 0;
        }
    }
    return refuse(error, key->name, value, "1 or 0, true or false, is allowed");
}

static void separate_words(char *list) {
    const char *from = list + strspn(list, " ");
    char *to = list;
    while (*from) {
        if (*from == ' ') {
            from += strspn(from, " ");
            if (*from)
                *to++ = *CONSUL_BETWEEN_WORDS;
            continue;
        }
        if (*from == '\\' && (from[1] == ' ' || from[1] == '\\'))
            from++;
        *to++ = *from++;
    }
    *to = 0;
}

static int set_key(struct consul_options *options, const char *name, char *value, char *error) {
    const struct key *key = find_key(name);
    if (!key)
        return refuse_unknown(error, is_text(name) ? name : "?", is_text(value) ? value : "?");
    if (!is_text(value))
        return refuse(error, name, "?", "UTF-8 text without control characters is allowed");
    if (key->kind == NUMBER)
        return set_number(options, key, value, error);
    if (key->kind == SWITCH)
        return set_switch(options, key, value, error);
    if (key->kind == LIST)
        separate_words(value);
    /* An empty value is what an unset variable of the environment leaves: as if not there. */
    *text_field(options, key) = *value ? value : NULL;
    return 0;
}

/* Cuts the next pair off `*rest`, in place. */
static char *next_pair(char **rest) {
    char *pair = *rest;
    char *from = pair;
    char *to = pair;
    while (*from && *from != ',') {
        if (*from == '\\' && from[1])
            from++;
        else if (*from == '\\')
            break;
        *to++ = *from++;
    }
    *rest = *from == ',' ? from + 1 : from + strlen(from);
    *to = 0;
    /* Lines of an ini file may be continued after a comma. */
    return pair + strspn(pair, " \t");
}

static int set_pairs(struct consul_options *options, char *error) {
    char *rest = options->storage;
    const char *before = "consul-register";
    while (*rest) {
        char *pair = next_pair(&rest);
        char *equals = strchr(pair, '=');
        if (!*pair)
            continue;
        if (!equals) {
            /* It may be the second half of a token with a comma in it: not shown. */
            snprintf(error, CONSUL_ERROR_SIZE,
                     "what follows %.64s has no '=': key=value pairs, separated by commas, are "
                     "allowed, and \\, is a comma in a value",
                     before);
            return -1;
        }
        *equals = 0;
        if (set_key(options, pair, equals + 1, error))
            return -1;
        before = pair;
    }
    return 0;
}

static int check_name(const struct consul_options *options, char *error) {
    if (options->name)
        return 0;
    snprintf(error, CONSUL_ERROR_SIZE, "name is missing: name=SERVICE is required");
    return -1;
}

/* Consul's API follows "..", "." and empty parts of a path, even if they are escaped. */
static int check_id(const struct consul_options *options, char *error) {
    const char *id = options->id ? options->id : options->name;
    const char *part = id;
    for (;;) {
        size_t length = strcspn(part, "/");
        if (!length || (length <= 2 && strspn(part, ".") == length))
            return refuse(error, options->id ? "id" : "name", id,
                          "\".\", \"..\" or nothing between slashes is not allowed");
        if (!part[length] || !part[length + 1])
            return 0;
        part += length + 1;
    }
}

/* Consul refuses addresses that mean "any". */
static int check_address(const struct consul_options *options, char *error) {
    static const char *const any[] = {"0.0.0.0", "::", "[::]"};
    size_t i;
    if (!options->address)
        return 0;
    for (i = 0; i < LENGTH(any); i++) {
        if (!strcmp(options->address, any[i]))
            return refuse(error, "address", options->address,
                          "an address that clients can connect to is allowed, Consul refuses this");
    }
    if (strpbrk(options->address, " /"))
        return refuse(error, "address", options->address, "an IP address or host name is allowed");
    return 0;
}

static int check_duration(const struct consul_options *options, char *error) {
    if (options->deregister_after <= 0 || options->deregister_after >= 60)
        return 0;
    snprintf(error, CONSUL_ERROR_SIZE,
             "deregister_after=%ld: a number from 60 to 31536000 is allowed, or 0 for never: "
             "Consul's minimum is a minute",
             options->deregister_after);
    return -1;
}

/* Of the name before the colon, in a word of `meta`, `tagged_addresses` or `check_header`. */
static const char name_characters[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";

/* One word of `meta`, against the rules of Consul's agent. */
static int check_meta_word(const char *word, size_t length) {
    const char *colon = memchr(word, ':', length);
    size_t name = colon ? (size_t)(colon - word) : 0;
    if (!name || name > 128 || length - name - 1 > 512 || strspn(word, name_characters) < name)
        return -1;
    if (!strncmp(word, "consul-", 7))
        return -1;
    return name == strlen(CONSUL_OWNER_KEY) && !strncmp(word, CONSUL_OWNER_KEY, name) ? -1 : 0;
}

static const char *next_word(const char *word) {
    word += strcspn(word, CONSUL_BETWEEN_WORDS);
    return word + strspn(word, CONSUL_BETWEEN_WORDS);
}

static int check_meta(const struct consul_options *options, char *error) {
    const char *word = options->meta ? options->meta : "";
    int words = 0;
    for (; *word; word = next_word(word)) {
        size_t length = strcspn(word, CONSUL_BETWEEN_WORDS);
        /* Consul takes 64, and one is the owner's. */
        if (check_meta_word(word, length) || ++words > 63)
            return refuse_word(error, "meta", word, length,
                               "up to 63 KEY:VALUE words are allowed, a KEY of up to 128 letters, "
                               "digits, - and _, not beginning with consul-, a VALUE of up to 512");
    }
    return 0;
}

/* Whether an earlier word of the list has the same name before its colon. */
static int is_repeated(const char *list, const char *word, size_t name) {
    for (; list < word; list = next_word(list)) {
        if (!strncasecmp(list, word, name + 1))
            return 1;
    }
    return 0;
}

int consul_options_tagged(struct consul_tagged *tagged, const char *word, size_t length) {
    const char *end = word + length;
    const char *address = memchr(word, ':', length);
    const char *after = end;
    char *number_end;
    if (!address || address == word || ++address == end)
        return -1;
    *tagged = (struct consul_tagged){word, (size_t)(address - 1 - word), address, 0, -1};
    if (*address == '[') {
        tagged->address++;
        after = memchr(address, ']', (size_t)(end - address));
    } else if (memchr(address, ':', (size_t)(end - address)) ==
               memrchr(address, ':', (size_t)(end - address))) {
        after = memchr(address, ':', (size_t)(end - address));
        after = after ? after : end;
    }
    if (!after || after == tagged->address)
        return -1;
    tagged->address_length = (size_t)(after - tagged->address);
    after += *after == ']';
    if (after == end)
        return 0;
    tagged->port = *after == ':' && after[1] >= '0' && after[1] <= '9'
                       ? strtol(after + 1, &number_end, 10)
                       : 0;
    return tagged->port > 0 && tagged->port <= 65535 && number_end == end ? 0 : -1;
}

static int check_tagged_addresses(const struct consul_options *options, char *error) {
    const char *word = options->tagged_addresses ? options->tagged_addresses : "";
    for (; *word; word = next_word(word)) {
        size_t length = strcspn(word, CONSUL_BETWEEN_WORDS);
        struct consul_tagged tagged;
        if (consul_options_tagged(&tagged, word, length) ||
            strspn(word, name_characters) != tagged.tag_length ||
            strcspn(tagged.address, " /") < tagged.address_length ||
            is_repeated(options->tagged_addresses, word, tagged.tag_length))
            return refuse_word(error, "tagged_addresses", word, length,
                               "TAG:ADDRESS or TAG:ADDRESS:PORT words are allowed, each TAG once, "
                               "such as wan:203.0.113.5:8080 or lan:[fd00::5]:80");
    }
    return 0;
}

/* ---- the check ---- */

enum consul_check consul_options_check(const struct consul_options *options) {
    if (options->check && !strcmp(options->check, "tcp"))
        return CONSUL_CHECK_TCP;
    if (options->check &&
        (!strncmp(options->check, "http:/", 6) || !strncmp(options->check, "https:/", 7)))
        return CONSUL_CHECK_HTTP;
    return CONSUL_CHECK_TTL;
}

const char *consul_options_path(const struct consul_options *options) {
    return strchr(options->check, '/');
}

/* Which check a key of the check's is for. */
enum use { AGENTS, HTTP, HTTPS };

static int check_uses(const struct consul_options *options, char *error) {
    static const char *const allowed[] = {
        "is allowed only together with check=tcp, check=http:/PATH or check=https:/PATH",
        "is allowed only together with check=http:/PATH or check=https:/PATH",
        "is allowed only together with check=https:/PATH"};
    const struct {
        const char *name;
        const char *text;
        long number;
        enum use use;
    } given[] = {
        {"interval", NULL, options->interval, AGENTS},
        {"timeout", NULL, options->timeout, AGENTS},
        {"check_address", options->check_address, -1, AGENTS},
        {"check_port", NULL, options->check_port, AGENTS},
        {"success_before_passing", NULL, options->success_before_passing, AGENTS},
        {"failures_before_critical", NULL, options->failures_before_critical, AGENTS},
        {"check_method", options->check_method, -1, HTTP},
        {"check_header", options->check_header, -1, HTTP},
        {"check_body", options->check_body, -1, HTTP},
        {"check_tls_server_name", options->check_tls_server_name, -1, HTTPS},
        {"check_ssl_no_verify", NULL, options->check_ssl_no_verify, HTTPS},
    };
    enum consul_check check = consul_options_check(options);
    int level = check == CONSUL_CHECK_TTL   ? -1
                : check == CONSUL_CHECK_TCP ? AGENTS
                : options->check[4] == 's'  ? HTTPS
                                            : HTTP;
    size_t i;
    for (i = 0; i < LENGTH(given); i++) {
        char number[32];
        if ((!given[i].text && given[i].number < 0) || (int)given[i].use <= level)
            continue;
        snprintf(number, sizeof(number), "%ld", given[i].number);
        return refuse(error, given[i].name, given[i].text ? given[i].text : number,
                      allowed[given[i].use]);
    }
    return 0;
}

static int check_headers(const struct consul_options *options, char *error) {
    const char *word = options->check_header ? options->check_header : "";
    for (; *word; word = next_word(word)) {
        size_t name = strspn(word, name_characters);
        if (!name || word[name] != ':' || is_repeated(options->check_header, word, name))
            return refuse(error, "check_header", "",
                          "NAME:VALUE words are allowed, each NAME once; \\\\ before a blank "
                          "makes it a part of VALUE");
    }
    return 0;
}

static int check_check(const struct consul_options *options, char *error) {
    enum consul_check check = consul_options_check(options);
    if (check == CONSUL_CHECK_TTL && options->check && strcmp(options->check, "ttl"))
        return refuse(error, "check", options->check,
                      "ttl, tcp, http:/PATH or https:/PATH is allowed");
    if (check_uses(options, error) || check_headers(options, error))
        return -1;
    if (options->check_method &&
        options->check_method[strspn(options->check_method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")])
        return refuse(error, "check_method", options->check_method,
                      "a method such as GET or HEAD is allowed");
    if (options->check_address && strpbrk(options->check_address, " /"))
        return refuse(error, "check_address", options->check_address,
                      "an IP address or host name is allowed");
    if (check != CONSUL_CHECK_TTL && options->port < 0 && options->check_port < 0)
        return refuse(error, "check", options->check,
                      "is allowed only with port=NUMBER or check_port=NUMBER");
    return 0;
}

static int check_token(const struct consul_options *options, char *error) {
    if (options->token && options->token_file) {
        snprintf(error, CONSUL_ERROR_SIZE, "token_file=%.128s: is not allowed together with token",
                 options->token_file);
        return -1;
    }
    if (options->token && strlen(options->token) >= CONSUL_TOKEN_SIZE)
        return refuse(error, "token", "", "up to 511 characters are allowed");
    return 0;
}

static int check_together(const struct consul_options *options, char *error) {
    return check_name(options, error) || check_id(options, error) ||
                   check_address(options, error) || check_duration(options, error) ||
                   check_meta(options, error) || check_tagged_addresses(options, error) ||
                   check_check(options, error) || check_token(options, error)
               ? -1
               : 0;
}

int consul_options_parse(struct consul_options *options, const char *line, char *error) {
    size_t i;
    memset(options, 0, sizeof(*options));
    for (i = 0; i < LENGTH(keys); i++) {
        if (keys[i].kind == NUMBER || keys[i].kind == SWITCH)
            *number_field(options, &keys[i]) = -1;
    }
    options->storage = strdup(line);
    if (!options->storage) {
        snprintf(error, CONSUL_ERROR_SIZE, "out of memory");
        return -1;
    }
    if (!set_pairs(options, error) && !check_together(options, error))
        return 0;
    consul_options_free(options);
    return -1;
}

void consul_options_free(struct consul_options *options) {
    free(options->storage);
    memset(options, 0, sizeof(*options));
}
