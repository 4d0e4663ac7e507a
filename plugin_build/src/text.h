/* text.c: text that grows, and what outside values become inside JSON and URLs. */
#ifndef CONSUL_TEXT_H
#define CONSUL_TEXT_H

#include <stddef.h>

/* Once an addition failed for lack of memory the rest is dropped: look at `failed` at the end. */
struct consul_text {
    char *data;
    size_t length;
    size_t size;
    int failed;
};

void consul_text_add(struct consul_text *text, const char *data, size_t length);
void consul_text_say(struct consul_text *text, const char *string);
void consul_text_number(struct consul_text *text, long number);
void consul_text_json(struct consul_text *text, const char *data, size_t length);
void consul_text_url(struct consul_text *text, const char *string);
void consul_text_clear(struct consul_text *text);
void consul_text_free(struct consul_text *text);
/* A URL as far as a log may show it: without credentials and without its query. */
void consul_url_line(const char *url, char *line, size_t size);

#endif
