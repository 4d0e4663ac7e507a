/* Text that grows, and what values from outside become inside JSON and URLs. */
#define _GNU_SOURCE

#include "text.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes room for `length` more bytes and a terminating zero. */
static int reserve(struct consul_text *text, size_t length) {
    size_t size = text->size ? text->size : 256;
    char *data;
    if (text->failed || length > SIZE_MAX / 4 - text->length)
        return -1;
    while (size < text->length + length + 1)
        size *= 2;
    if (size == text->size)
        return 0;
    data = realloc(text->data, size);
    if (!data)
        return -1;
    text->data = data;
    text->size = size;
    return 0;
}

void consul_text_add(struct consul_text *text, const char *data, size_t length) {
    if (reserve(text, length)) {
        text->failed = 1;
        return;
    }
    memcpy(text->data + text->length, data, length);
    text->length += length;
    text->data[text->length] = 0;
}

void consul_text_say(struct consul_text *text, const char *string) {
    consul_text_add(text, string, strlen(string));
}

void consul_text_number(struct consul_text *text, long number) {
    char digits[24];
    snprintf(digits, sizeof(digits), "%ld", number);
    consul_text_say(text, digits);
}

/* Adds a JSON string, quotes included. */
void consul_text_json(struct consul_text *text, const char *data, size_t length) {
    size_t i;
    char escape[8];
    consul_text_say(text, "\"");
    for (i = 0; i < length; i++) {
        unsigned char c = (unsigned char)data[i];
        if (c == '"' || c == '\\') {
            snprintf(escape, sizeof(escape), "\\%c", c);
            consul_text_say(text, escape);
        } else if (c < 0x20 || c == 0x7f) {
            snprintf(escape, sizeof(escape), "\\u%04x", c);
            consul_text_say(text, escape);
        } else {
            consul_text_add(text, data + i, 1);
        }
    }
    consul_text_say(text, "\"");
}

/* Adds a string as one segment of a URL's path, or one value of its query. */
void consul_text_url(struct consul_text *text, const char *string) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
    char escape[4];
    for (; *string; string++) {
        if (strchr(plain, *string)) {
            consul_text_add(text, string, 1);
        } else {
            snprintf(escape, sizeof(escape), "%%%02X", (unsigned char)*string);
            consul_text_say(text, escape);
        }
    }
}

void consul_text_clear(struct consul_text *text) {
    text->length = 0;
    text->failed = 0;
    if (text->data)
        text->data[0] = 0;
}

void consul_text_free(struct consul_text *text) {
    free(text->data);
    memset(text, 0, sizeof(*text));
}

/* A URL as far as a log may show it: without credentials and without its query. */
void consul_url_line(const char *url, char *line, size_t size) {
    const char *scheme = strstr(url, "://");
    const char *host = scheme ? scheme + 3 : url;
    size_t authority = strcspn(host, "/?#");
    size_t before = 0;
    size_t i;
    if (scheme) {
        for (i = 0; i < authority; i++) {
            if (host[i] == '@')
                before = i + 1;
        }
        snprintf(line, size, "%.*s%.*s", (int)(host - url), url, (int)strcspn(host + before, "?#"),
                 host + before);
    } else {
        snprintf(line, size, "%s", url);
    }
}
