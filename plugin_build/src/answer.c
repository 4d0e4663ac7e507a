/*
 * What is read from the agent's answers. Of all the JSON that an agent may send, the plugin
 * needs one thing: whether, or how often, its own owner mark is in it. The mark is 128 random
 * bits, so it is in an answer only where a registration of this process is, and it can be
 * counted while the answer comes in, whatever its size, without taking the JSON apart.
 */
#define _GNU_SOURCE

#include "http.h"

#include <stdio.h>
#include <string.h>

void consul_answer_start(struct consul_answer *answer, const char *owner) {
    memset(answer, 0, sizeof(*answer));
    answer->owner = owner;
}

/* After a mismatch: the longest beginning of the owner that the last bytes may still be. */
static size_t fall_back(const char *owner, size_t matched, char c) {
    size_t length;
    for (length = matched; length > 0; length--) {
        if (owner[length - 1] == c && !memcmp(owner, owner + matched - length + 1, length - 1))
            return length;
    }
    return 0;
}

static void count_owner(struct consul_answer *answer, char c) {
    if (answer->owner[answer->matched] == c)
        answer->matched++;
    else
        answer->matched = fall_back(answer->owner, answer->matched, c);
    if (answer->owner[answer->matched] == 0) {
        answer->owners++;
        answer->matched = 0;
    }
}

void consul_answer_feed(struct consul_answer *answer, const char *data, size_t length) {
    size_t i;
    size_t room = sizeof(answer->excerpt) - answer->excerpt_length;
    size_t kept = length < room ? length : room;
    memcpy(answer->excerpt + answer->excerpt_length, data, kept);
    answer->excerpt_length += kept;
    answer->length += length;
    if (!answer->owner || !*answer->owner)
        return;
    for (i = 0; i < length; i++)
        count_owner(answer, data[i]);
}

void consul_answer_line(const struct consul_answer *answer, const char *secret, char *line,
                        size_t size) {
    size_t i;
    size_t length = 0;
    size_t known = secret ? strlen(secret) : 0;
    if (known && memmem(answer->excerpt, answer->excerpt_length, secret, known)) {
        snprintf(line, size, "(hidden, it repeats the token)");
        return;
    }
    for (i = 0; i < answer->excerpt_length && length + 1 < size; i++) {
        char c = answer->excerpt[i];
        if (c == '\n' || c == '\r')
            break;
        line[length++] = c >= ' ' && c <= '~' ? c : '?';
    }
    line[length] = 0;
}
