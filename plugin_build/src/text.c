/* What values from outside become inside JSON, URLs and lines of a log. */
#define _GNU_SOURCE

#include "consul.h"

#include <stdlib.h>
#include <string.h>

void consul_text_json(FILE *text, const char *value, size_t length) {
    size_t i;
    for (i = 0; i < length; i++) {
        unsigned char c = (unsigned char)value[i];
        if (c == '"' || c == '\\')
            fprintf(text, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(text, "\\u%04x", c);
        else
            putc(c, text);
    }
}

void consul_text_url(FILE *text, const char *value) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
    for (; *value; value++)
        fprintf(text, strchr(plain, *value) ? "%c" : "%%%02X", (unsigned char)*value);
}

int consul_text_end(FILE *text, char **data) {
    int failed = ferror(text);
    if (!fclose(text) && !failed)
        return 0;
    free(*data);
    *data = NULL;
    return -1;
}

void consul_url_line(const char *url, char *line, size_t size) {
    const char *scheme = strstr(url, "://");
    const char *shown = scheme ? scheme + 3 : url;
    const char *at = memrchr(shown, '@', strcspn(shown, "/?#"));
    if (!scheme) {
        snprintf(line, size, "%s", url);
        return;
    }
    at = at ? at + 1 : shown;
    snprintf(line, size, "%.*s%.*s", (int)(shown - url), url, (int)strcspn(at, "?#"), at);
}
