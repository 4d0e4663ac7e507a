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
    struct stat file;
    int fd = memfd_create("consul", 0);
    if (fd < 0)
        return -1;
    if (fstat(fd, &file) || write_all(fd, text)) {
        close(fd);
        return -1;
    }
    snprintf(value, sizeof(value), "%ld:fd:%d:%llu", (long)getpid(), fd,
             (unsigned long long)file.st_ino);
    if (setenv(VARIABLE, value, 1)) {
        close(fd);
        return -1;
    }
    uwsgi_add_safe_fd(fd);
    return 0;
}

static char *read_all(int fd, size_t size) {
    size_t length = 0;
    char *text = malloc(size + 1);
    while (text && length < size) {
        ssize_t found = pread(fd, text + length, size - length, (off_t)length);
        if (found <= 0)
            break;
        length += (size_t)found;
    }
    if (text)
        text[length] = 0;
    return text;
}

/* `place` is FD:INODE, or only FD as the version before left it. The number may be another file's
 * by now: a program without this plugin, started by a reload in between, has closed ours. */
static char *take_fd(const char *place) {
    char *text;
    struct stat file;
    int fd = atoi(place);
    const char *inode = strchr(place, ':');
    if (fstat(fd, &file) || !S_ISREG(file.st_mode) || file.st_nlink ||
        (inode && strtoull(inode + 1, NULL, 10) != (unsigned long long)file.st_ino))
        return NULL;
    text = read_all(fd, (size_t)file.st_size);
    close(fd);
    return text;
}

char *consul_handover_take(void) {
    const char *value = getenv(VARIABLE);
    char *text = NULL;
    char *end = NULL;
    if (value && strtol(value, &end, 10) == (long)getpid() && *end == ':') {
        /* As an older version left it: here and now. */
        text = strncmp(end, ":fd:", 4) ? strdup(end + 1) : take_fd(end + 4);
    }
    unsetenv(VARIABLE);
    return text;
}
