// SPDX-License-Identifier: Apache-2.0
/*
 * What a program gets that jumps to entry_SYSCALL_64 on purpose, with RCX and R11 of
 * its choice. Runs inside a guest, with its address from System.map:
 *
 *     gcc -O2 -static -o syscall_entry syscall_entry.c
 *     syscall_entry armed|unarmed 0x<entry_SYSCALL_64>
 *
 * armed:   the command line has sandboxvm.pvm_syscall=1. A jump is a system call that
 *          returns to RCX, in user mode, with no flag that user mode cannot set.
 * unarmed: every such jump is SIGSEGV, as on a kernel without the patch.
 *
 * Prints one line for each case. Exit code 0 if all hold, 1 if not, 2 for wrong usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define FLAG(bit) (1ull << (bit))
enum { CF = 0, FIXED = 1, PF = 2, AF = 4, ZF = 6, SF = 7, TF = 8, IF = 9, DF = 10, OF = 11,
       NT = 14, RF = 16, VM = 17, AC = 18, VIF = 19, VIP = 20, ID = 21 };
#define IOPL (3ull << 12)

/* The flags that a program may have after any system call. TF has a separate case. */
#define ALLOWED (FLAG(CF) | FLAG(FIXED) | FLAG(PF) | FLAG(AF) | FLAG(ZF) | FLAG(SF) | \
                 FLAG(IF) | FLAG(DF) | FLAG(OF) | FLAG(AC) | FLAG(ID))

/* Where user space ends, with 4-level page tables. */
#define TASK_SIZE_MAX 0x7ffffffff000ull

/* Registers for one jump, and what is found after it. jump_with() knows the offsets. */
struct jump {
    uint64_t rax, rdi, rsi, rdx, rcx, r11, target; /* 0 .. 48 */
    uint64_t flags;                                 /* 56: RFLAGS after the jump */
};

void jump_with(struct jump *jump);
extern const char jump_returns_here[];
__asm__(".globl jump_with, jump_returns_here\n"
        "jump_with:\n"
        "    push %rbx\n"
        "    mov %rdi, %rbx\n"
        "    mov 0(%rbx), %rax\n"
        "    mov 8(%rbx), %rdi\n"
        "    mov 16(%rbx), %rsi\n"
        "    mov 24(%rbx), %rdx\n"
        "    mov 32(%rbx), %rcx\n"
        "    mov 40(%rbx), %r11\n"
        "    jmp *48(%rbx)\n"
        /* A restarted system call goes back by the two bytes of this instruction. */
        "    syscall\n"
        "jump_returns_here:\n"
        "    pushfq\n"
        "    popq 56(%rbx)\n"
        "    pushq $0x202\n"
        "    popfq\n"
        "    mov %rax, 0(%rbx)\n"
        "    pop %rbx\n"
        "    ret\n");

static uint64_t entry;
static bool all_hold = true;

static sigjmp_buf after_signal;
static volatile sig_atomic_t traps;
static volatile uint64_t signal_ip, signal_flags;

static void remember(ucontext_t *context)
{
    signal_ip = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
    signal_flags = (uint64_t)context->uc_mcontext.gregs[REG_EFL];
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)info;
    remember(context);
    siglongjmp(after_signal, number);
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    remember(context);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)FLAG(TF);
    traps++;
}

static void on_usr1(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    remember(context);
}

static void on_alarm(int number) { (void)number; }

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(number, &action, NULL);
}

static void check(bool holds, const char *what)
{
    printf("%s: %s\n", holds ? "ok" : "FAIL", what);
    fflush(stdout);
    all_hold &= holds;
}

/* 0 when the jump came back, else the fatal signal it raised. */
static int try(struct jump *jump)
{
    int number = sigsetjmp(after_signal, 1);
    if (number == 0)
        jump_with(jump);
    return number;
}

static struct jump call(long number, uint64_t r11)
{
    return (struct jump){.rax = (uint64_t)number, .rcx = (uint64_t)jump_returns_here,
                         .r11 = r11, .target = entry};
}

static const struct { uint64_t r11; const char *name; } hostile[] = {
    {0, "no flags at all, IF clear"}, {IOPL, "IOPL 3"}, {FLAG(NT), "NT"}, {FLAG(RF), "RF"},
    {FLAG(VM), "VM"}, {FLAG(AC), "AC"}, {FLAG(VIF) | FLAG(VIP), "VIF and VIP"}, {FLAG(DF), "DF"},
    {FLAG(ID), "ID"}, {~0ull << 22, "reserved bits"}, {~FLAG(TF), "every bit but TF"},
};

static const struct { uint64_t rcx; const char *name; } outside[] = {
    {0x0000800000000000ull, "first non-canonical"}, {0xffff7fffffffffffull, "last non-canonical"},
    {0x8000000000000000ull, "top bit alone"}, {0xffff888000000000ull, "kernel direct map"},
    {TASK_SIZE_MAX + 1, "just outside user space"}, {~0ull, "last address"},
};

static void hostile_flags(void)
{
    char what[128];
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct jump jump = call(SYS_getpid, hostile[i].r11);
        int number = try(&jump);
        snprintf(what, sizeof what, "R11 with %s: an ordinary call, flags %#llx", hostile[i].name,
                 (unsigned long long)jump.flags);
        check(number == 0 && (pid_t)jump.rax == getpid() && (jump.flags & ~ALLOWED) == 0 &&
                  (jump.flags & FLAG(IF)), what);

        /* PUSHF hides some bits, a signal frame does not. */
        jump = call(SYS_kill, hostile[i].r11);
        jump.rdi = (uint64_t)getpid();
        jump.rsi = SIGUSR1;
        signal_flags = ~0ull;
        number = try(&jump);
        snprintf(what, sizeof what, "R11 with %s: flags in a signal frame %#llx", hostile[i].name,
                 (unsigned long long)signal_flags);
        check(number == 0 && (signal_flags & ~ALLOWED) == 0 && (signal_flags & FLAG(IF)), what);
    }
}

static void no_privilege(void)
{
    struct jump jump = call(SYS_getpid, IOPL | FLAG(IF));
    int number = sigsetjmp(after_signal, 1);
    if (number == 0) {
        jump_with(&jump);
        __asm__ volatile("cli; sti");
    }
    check(number == SIGSEGV, "CLI after R11 with IOPL 3 is SIGSEGV");
}

static void single_step(void)
{
    struct jump jump = call(SYS_getpid, FLAG(TF) | FLAG(IF));
    traps = 0;
    int number = try(&jump);
    check(number == 0 && traps == 1 && (pid_t)jump.rax == getpid() &&
              signal_ip >= (uint64_t)jump_returns_here && signal_ip < (uint64_t)jump_returns_here + 16,
          "R11 with TF traps once, in user mode, after the call");
}

static void hostile_return(void)
{
    char what[128];
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        struct jump jump = call(SYS_getpid, FLAG(IF));
        jump.rcx = outside[i].rcx;
        snprintf(what, sizeof what, "RCX %#llx, %s: SIGSEGV", (unsigned long long)jump.rcx, outside[i].name);
        check(try(&jump) == SIGSEGV, what);
    }
    struct jump jump = call(SYS_getpid, FLAG(IF));
    jump.rcx = entry;
    check(try(&jump) == SIGSEGV, "RCX at the entry point itself: SIGSEGV");
    jump.rcx = 8;
    check(try(&jump) == SIGSEGV && signal_ip == 8, "RCX at an unmapped user address: SIGSEGV there");
}

static void ordinary_semantics(void)
{
    struct jump jump = call(100000, FLAG(IF));
    check(try(&jump) == 0 && (long)jump.rax == -ENOSYS, "an unknown call is ENOSYS");
    jump = call(-1, FLAG(IF));
    check(try(&jump) == 0 && (long)jump.rax == -ENOSYS, "call -1 is ENOSYS");

    jump = call(SYS_fork, FLAG(IF));
    int status = -1;
    if (try(&jump) == 0 && jump.rax == 0)
        _exit(42);
    waitpid((pid_t)jump.rax, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 42, "fork returns twice");

    /* The alarm interrupts read(); SA_RESTART takes it up again, and the child then writes. */
    int ends[2];
    char byte = 0;
    struct sigaction restart = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &restart, NULL);
    if (pipe(ends) != 0)
        exit(2);
    pid_t child = fork();
    if (child == 0) {
        usleep(600000);
        _exit(write(ends[1], "x", 1) != 1);
    }
    struct itimerval timer = {.it_value.tv_usec = 200000};
    setitimer(ITIMER_REAL, &timer, NULL);
    jump = call(SYS_read, FLAG(IF));
    jump.rdi = (uint64_t)ends[0];
    jump.rsi = (uint64_t)&byte;
    jump.rdx = 1;
    check(try(&jump) == 0 && (long)jump.rax == 1 && byte == 'x', "an interrupted read is restarted");
    waitpid(child, NULL, 0);
}

static void traced(void)
{
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        struct jump jump = call(SYS_getppid, FLAG(IF));
        jump_with(&jump);
        _exit((pid_t)jump.rax == getppid() ? 0 : 1);
    }
    int status;
    struct user_regs_struct regs = {0};
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    bool entered = false;
    for (int stop = 0; stop < 8 && !entered; stop++) {
        ptrace(PTRACE_SYSCALL, child, NULL, NULL);
        waitpid(child, &status, 0);
        if (WIFEXITED(status))
            break;
        ptrace(PTRACE_GETREGS, child, NULL, &regs);
        entered = WSTOPSIG(status) == (SIGTRAP | 0x80) && regs.orig_rax == SYS_getppid &&
                  (long)regs.rax == -ENOSYS && regs.rip == (uint64_t)jump_returns_here;
    }
    ptrace(PTRACE_CONT, child, NULL, NULL);
    waitpid(child, &status, 0);
    check(entered && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a tracer sees the call as any other");
}

static void refused(void)
{
    char what[128];
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct jump jump = call(SYS_getpid, hostile[i].r11);
        snprintf(what, sizeof what, "R11 with %s: SIGSEGV at the entry point", hostile[i].name);
        check(try(&jump) == SIGSEGV && signal_ip == entry, what);
    }
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        struct jump jump = call(SYS_getpid, FLAG(IF));
        jump.rcx = outside[i].rcx;
        snprintf(what, sizeof what, "RCX %#llx, %s: SIGSEGV at the entry point",
                 (unsigned long long)jump.rcx, outside[i].name);
        check(try(&jump) == SIGSEGV && signal_ip == entry, what);
    }
}

/* Other accesses to the entry point than fetching instructions are SIGSEGV in both modes. */
static void other_addresses(void)
{
    struct jump jump = call(SYS_getpid, FLAG(IF));
    jump.target = entry + 3;
    check(try(&jump) == SIGSEGV, "a jump behind the entry point is SIGSEGV");
    int number = sigsetjmp(after_signal, 1);
    if (number == 0)
        (void)*(volatile char *)entry;
    check(number == SIGSEGV, "a read of the entry point is SIGSEGV");
    number = sigsetjmp(after_signal, 1);
    if (number == 0)
        *(volatile char *)entry = 0;
    check(number == SIGSEGV, "a write to the entry point is SIGSEGV");
}

int main(int argc, char **argv)
{
    bool armed = argc == 3 && strcmp(argv[1], "armed") == 0;
    if (argc != 3 || (!armed && strcmp(argv[1], "unarmed") != 0) ||
        (entry = strtoull(argv[2], NULL, 16)) < 0xffffffff80000000ull) {
        fprintf(stderr, "usage: %s armed|unarmed 0x<address of entry_SYSCALL_64>\n", argv[0]);
        return 2;
    }
    handle(SIGSEGV, on_fault);
    handle(SIGBUS, on_fault);
    handle(SIGILL, on_fault);
    handle(SIGTRAP, on_trap);
    handle(SIGUSR1, on_usr1);

    if (armed) {
        hostile_flags();
        no_privilege();
        single_step();
        hostile_return();
        ordinary_semantics();
        traced();
    } else {
        refused();
    }
    other_addresses();
    printf("syscall_entry %s: %s\n", argv[1], all_hold ? "all hold" : "FAILED");
    return all_hold ? 0 : 1;
}
