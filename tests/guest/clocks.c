// Reads the clocks of a machine, and sets timers. tests/tests/guest/time.rs runs it in a guest, where
// it starts in much less time than an interpreter if the guest's kernel is interpreted.
//
//   clocks busy FILE...   starts a process for each FILE, which reads the clocks without end, and
//                         returns when all of them do
//   clocks look FILE...   prints what each of these processes has seen
//   clocks timers         sets timers, and prints when they fired
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CLOCKS = 3 };
static const clockid_t clocks[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME};

// How often the process read the clocks, the longest time between two readings, how often a clock
// went back, and the clocks. Times are in nanoseconds.
struct seen {
    uint64_t count, worst, back, now[CLOCKS];
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t clock_now(clockid_t clock) {
    struct timespec time;
    if (clock_gettime(clock, &time) != 0) fail("clock_gettime");
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static volatile struct seen *shared(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 4096) != 0) fail(path);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) fail("mmap");
    close(fd);
    return page;
}

static void read_without_end(volatile struct seen *seen) {
    uint64_t last[CLOCKS];
    for (int n = 0; n < CLOCKS; n++) last[n] = clock_now(clocks[n]);
    for (;;) {
        uint64_t now[CLOCKS];
        for (int n = 0; n < CLOCKS; n++) now[n] = clock_now(clocks[n]);
        uint64_t between = now[0] - last[0];
        if (between > seen->worst) seen->worst = between;
        // The wall clock may be set.
        if (now[0] < last[0] || now[1] < last[1]) seen->back++;
        for (int n = 0; n < CLOCKS; n++) seen->now[n] = last[n] = now[n];
        seen->count++;
    }
}

static int busy(int files, char **paths) {
    for (int n = 0; n < files; n++) {
        volatile struct seen *seen = shared(paths[n]);
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            int null = open("/dev/null", O_RDWR);
            if (setsid() < 0 || null < 0) fail("setsid");
            for (int fd = 0; fd < 3; fd++) dup2(null, fd);
            read_without_end(seen);
        }
    }
    for (int n = 0; n < files; n++)
        while (shared(paths[n])->count == 0) usleep(10000);
    return 0;
}

static int look(int files, char **paths) {
    for (int n = 0; n < files; n++) {
        volatile struct seen *seen = shared(paths[n]);
        printf("%llu %llu %llu", (unsigned long long)seen->count, (unsigned long long)seen->worst,
               (unsigned long long)seen->back);
        for (int clock = 0; clock < CLOCKS; clock++) printf(" %llu", (unsigned long long)seen->now[clock]);
        printf("\n");
    }
    return 0;
}

static int timers(void) {
    const struct { clockid_t clock; const char *name; int is_absolute, after; } all[CLOCKS] = {
        {CLOCK_MONOTONIC, "monotonic", 0, 40},
        {CLOCK_REALTIME, "realtime", 1, 3600},
        {CLOCK_BOOTTIME, "boottime", 1, 3600},
    };
    struct pollfd wait[CLOCKS];
    uint64_t begun = clock_now(CLOCK_MONOTONIC);
    for (int n = 0; n < CLOCKS; n++) {
        struct itimerspec due = {0};
        if (all[n].is_absolute) due.it_value.tv_sec = (time_t)(clock_now(all[n].clock) / 1000000000u);
        due.it_value.tv_sec += all[n].after;
        wait[n] = (struct pollfd){.fd = timerfd_create(all[n].clock, 0), .events = POLLIN};
        if (timerfd_settime(wait[n].fd, all[n].is_absolute ? TFD_TIMER_ABSTIME : 0, &due, NULL) != 0) fail("timer");
    }
    printf("set\n");
    fflush(stdout);
    for (int left = CLOCKS; left > 0;) {
        if (poll(wait, CLOCKS, -1) < 0) fail("poll");
        for (int n = 0; n < CLOCKS; n++) {
            if (!(wait[n].revents & POLLIN)) continue;
            uint64_t times;
            if (read(wait[n].fd, &times, sizeof times) != sizeof times) fail("read");
            printf("%s %llu %.1f\n", all[n].name, (unsigned long long)times,
                   (double)(clock_now(CLOCK_MONOTONIC) - begun) / 1e9);
            fflush(stdout);
            // poll(2) ignores negative descriptors.
            wait[n].fd = -1;
            left--;
        }
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count > 2 && strcmp(arguments[1], "busy") == 0) return busy(count - 2, arguments + 2);
    if (count > 2 && strcmp(arguments[1], "look") == 0) return look(count - 2, arguments + 2);
    if (count == 2 && strcmp(arguments[1], "timers") == 0) return timers();
    return 2;
}
