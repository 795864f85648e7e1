/* Library for LD_PRELOAD. While a file controls it, writing below a folder fails as on a full or read-only disk, or
 * forcing data to disk takes long. VISION_CHAOS_FOLDER names the folder; VISION_CHAOS_DISK names the file, which holds
 * two integers: the errno of each write (0 if writes succeed), and the milliseconds by which a slow disk delays fsync.
 * With EROFS, fsync fails too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile int *control;
static char folder[4096];
static size_t folder_length;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("VISION_CHAOS_DISK"), *below = getenv("VISION_CHAOS_FOLDER");
    if (path == NULL || below == NULL || (folder_length = strlen(below)) >= sizeof folder)
        return;
    strcpy(folder, below);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, 2 * sizeof(int), PROT_READ, MAP_SHARED, fd, 0);
    control = mapped == MAP_FAILED ? NULL : mapped;
    close(fd);
}

static int is_below(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > (ssize_t)folder_length && memcmp(path, folder, folder_length) == 0;
}

static int fails(int fd)
{
    int saved = errno;
    int error = control != NULL ? control[0] : 0;
    int failing = error && is_below(fd);
    errno = failing ? error : saved;
    return failing;
}

static int is_read_only(int fd)
{
    return control != NULL && control[0] == EROFS && fails(fd);
}

static void delay(int fd)
{
    if (control != NULL && control[1] && is_below(fd))
        usleep((useconds_t)control[1] * 1000);
}

#define NEXT(type, name, ...) (((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)))

ssize_t write(int fd, const void *data, size_t size)
{
    return fails(fd) ? -1 : NEXT(ssize_t, "write", int, const void *, size_t)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return fails(fd) ? -1 : NEXT(ssize_t, "writev", int, const struct iovec *, int)(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return fails(fd) ? -1 : NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    return fails(fd) ? -1 : NEXT(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(fd, data, size, at);
}
int ftruncate(int fd, off_t size)
{
    return fails(fd) ? -1 : NEXT(int, "ftruncate", int, off_t)(fd, size);
}
int ftruncate64(int fd, off64_t size)
{
    return fails(fd) ? -1 : NEXT(int, "ftruncate64", int, off64_t)(fd, size);
}
int posix_fallocate(int fd, off_t at, off_t size)
{
    return fails(fd) ? errno : NEXT(int, "posix_fallocate", int, off_t, off_t)(fd, at, size);
}
int fsync(int fd)
{
    delay(fd);
    return is_read_only(fd) ? -1 : NEXT(int, "fsync", int)(fd);
}
int fdatasync(int fd)
{
    delay(fd);
    return is_read_only(fd) ? -1 : NEXT(int, "fdatasync", int)(fd);
}
