/*
 * Preloaded by tests: makes a worker of uWSGI as late as a busy machine can make it, where a
 * signal may find it. LATE=accept waits after each accepted connection, LATE=wait before each
 * wait for one. The moment is told by a file "late" in the working directory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void be_late(const char *where) {
    struct timespec left = {0, 300000000};
    const char *wanted = getenv("LATE");
    int saved = errno, file;
    if (!wanted || strcmp(wanted, where))
        return;
    file = open("late", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (file >= 0)
        close(file);
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
    errno = saved;
}

/* The system calls themselves: dlsym() has another version in each C library. */

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    int found = (int)syscall(SYS_accept4, fd, address, length, flags);
    if (found >= 0)
        be_late("accept");
    return found;
}

int accept(int fd, struct sockaddr *address, socklen_t *length) {
    return accept4(fd, address, length, 0);
}

int epoll_wait(int queue, struct epoll_event *events, int count, int timeout) {
    if (timeout < 0)
        be_late("wait");
    return (int)syscall(SYS_epoll_pwait, queue, events, count, timeout, NULL, 0);
}
