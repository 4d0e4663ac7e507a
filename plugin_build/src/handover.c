/*
 * What one program leaves to the next one that a reload starts in its process: in memory without
 * a name, whose descriptor uWSGI keeps open over the reload. The environment says only where that
 * is: it is too small for thousands of services, and it is the application's, too.
 */
#define _GNU_SOURCE
#include <uwsgi.h>

#include "consul.h"

#include <sys/mman.h>

/* With the process id, because other programs inherit the environment as well. */
#define VARIABLE "UWSGI_CONSUL_OWNER"

static int write_all(int fd, const char *text) {
    size_t left = strlen(text);
    while (left) {
        ssize_t written = write(fd, text, left);
        if (written <= 0)
            return -1;
        text += written;
        left -= (size_t)written;
    }
    return 0;
}

int consul_handover_leave(const char *text) {
    char value[64];
    int fd = memfd_create("consul", 0);
    if (fd < 0)
        return -1;
    snprintf(value, sizeof(value), "%ld:fd:%d", (long)getpid(), fd);
    if (write_all(fd, text) || setenv(VARIABLE, value, 1)) {
        close(fd);
        return -1;
    }
    uwsgi_add_safe_fd(fd);
    return 0;
}

static char *read_all(int fd) {
    struct stat file;
    size_t length = 0;
    char *text;
    if (fstat(fd, &file))
        return NULL;
    text = malloc((size_t)file.st_size + 1);
    while (text && length < (size_t)file.st_size) {
        ssize_t found = pread(fd, text + length, (size_t)file.st_size - length, (off_t)length);
        if (found <= 0)
            break;
        length += (size_t)found;
    }
    if (text)
        text[length] = 0;
    return text;
}

char *consul_handover_take(void) {
    const char *value = getenv(VARIABLE);
    char *text = NULL;
    char *end = NULL;
    if (value && strtol(value, &end, 10) == (long)getpid() && *end == ':') {
        int fd = strncmp(end, ":fd:", 4) ? -1 : atoi(end + 4);
        /* As the version before left it: here and now. */
        text = fd < 0 ? strdup(end + 1) : read_all(fd);
        if (fd >= 0)
            close(fd);
    }
    unsetenv(VARIABLE);
    return text;
}
