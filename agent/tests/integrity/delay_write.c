/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Preloaded into a target: holds back writes to regular files whose first bytes are a marker.
 *
 * The file named by DELAY_WRITE_CONTROL is shared with the test, which sets the marker, how long and how many
 * writes are held, and reads how many have begun to wait and how many of those are done.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    uint32_t milliseconds;
    uint32_t length; /* of the marker; 0 matches nothing */
    int32_t budget;  /* writes that will still be held */
    uint32_t begun;
    uint32_t ended;
    uint8_t marker[108];
};

static struct control *control;

__attribute__((constructor)) static void attach(void)
{
    const char *name = getenv("DELAY_WRITE_CONTROL");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;

    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        control = at;
}

static int is_marked(int fd, const void *data, size_t size)
{
    struct stat about;

    if (control == NULL)
        return 0;
    uint32_t length = __atomic_load_n(&control->length, __ATOMIC_ACQUIRE);
    if (length == 0 || length > sizeof control->marker || size < length)
        return 0;
    if (memcmp(data, control->marker, length) != 0)
        return 0;
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode))
        return 0;
    return __atomic_fetch_sub(&control->budget, 1, __ATOMIC_ACQ_REL) > 0;
}

/* Waits if this write is one to hold, and tells whether it was. */
static int hold(int fd, const void *data, size_t size)
{
    if (!is_marked(fd, data, size))
        return 0;
    uint32_t milliseconds = __atomic_load_n(&control->milliseconds, __ATOMIC_ACQUIRE);
    struct timespec left = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};

    __atomic_fetch_add(&control->begun, 1, __ATOMIC_ACQ_REL);
    while (nanosleep(&left, &left) != 0)
        ;
    return 1;
}

static ssize_t done(int held, ssize_t result)
{
    if (held)
        __atomic_fetch_add(&control->ended, 1, __ATOMIC_ACQ_REL);
    return result;
}

/* Replaces one function: NAME(parameters), called on as NAME(arguments), whose data begin at FIRST. */
#define REPLACE(name, parameters, arguments, first, size)              \
    ssize_t name parameters                                            \
    {                                                                  \
        static ssize_t(*next) parameters;                              \
                                                                       \
        if (next == NULL)                                              \
            next = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name);     \
        int held = hold(fd, first, size);                              \
        return done(held, next arguments);                             \
    }

REPLACE(write, (int fd, const void *data, size_t size), (fd, data, size), data, size)
REPLACE(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), data, size)
REPLACE(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), data, size)
REPLACE(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count),
        parts[0].iov_base, parts[0].iov_len)
REPLACE(pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at),
        parts[0].iov_base, parts[0].iov_len)
REPLACE(pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at),
        parts[0].iov_base, parts[0].iov_len)
