/*
 * Any answer, in any pieces: the owners that are counted must be those that are in it, and the
 * line for the log must be one line without the token.
 */
#define _GNU_SOURCE

#include "consul.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Owners that begin like their own middle are what a matcher gets wrong. */
static const char *const owners[] = {"aab", "abab", "aabaabaac", "0123456789abcdef"};

static size_t count(const char *text, size_t size, const char *owner) {
    size_t found = 0;
    const char *end = text + size;
    const char *at;
    while ((at = memmem(text, (size_t)(end - text), owner, strlen(owner)))) {
        found++;
        text = at + strlen(owner);
    }
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct consul_answer answer;
    char line[160];
    const char *text = (const char *)data + 2;
    size_t step, at;
    if (size < 2)
        return 0;
    size -= 2;
    step = data[1] ? data[1] : 1;
    consul_answer_start(&answer, owners[data[0] % 4]);
    for (at = 0; at < size; at += step)
        consul_answer_feed(&answer, text + at, size - at < step ? size - at : step);
    if (answer.owners != count(text, size, answer.owner) || answer.length != size)
        abort();
    consul_answer_line(&answer, "s3cr3t", line, sizeof(line));
    if (strlen(line) >= sizeof(line) || strpbrk(line, "\r\n\033"))
        abort();
    if (strstr(line, "s3cr3t"))
        abort();
    return 0;
}
