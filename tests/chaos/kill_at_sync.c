/* Loaded before libc: ends the process, as a power cut would, at its N-th sync; before it, or right after it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static long n_syncs;

static int counted(const char *name, int descriptor) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *wanted = getenv("KILL_AT_SYNC");
    int is_last = wanted && ++n_syncs == labs(atol(wanted));
    if (is_last && atol(wanted) < 0)
        kill(getpid(), SIGKILL);
    int result = sync(descriptor);
    if (is_last)
        kill(getpid(), SIGKILL);
    return result;
}

int fsync(int descriptor) { return counted("fsync", descriptor); }
int fdatasync(int descriptor) { return counted("fdatasync", descriptor); }
