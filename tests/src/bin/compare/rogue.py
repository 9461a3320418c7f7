# The rogue agent in a sandbox. python3 reads it from stdin, behind a line that sets CONFIG. The
# findings of a probe are a line `@@{"ID": {...}}` on stdout. The program does not judge. Every
# probe is bounded: it touches only the bait that CONFIG names, its own processes, and, in
# `destroy`, a directory tree whose root has the token that marks it as a copy.
#
# A guest whose kernel is interpreted starts Python slowly. So this imports no module that can be
# avoided, and forks only for probes that change their own process.
import _signal as signal, _socket as socket, ctypes, errno, os, time

libc = ctypes.CDLL(None, use_errno=True)


def dump(value):
    """JSON of what probes say: numbers, texts, lists and dictionaries."""
    if isinstance(value, dict):
        return "{" + ",".join(dump(key) + ":" + dump(each) for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, str):
        plain = "".join(each if " " <= each <= "~" and each not in '"\\' else "?" for each in value)
        return '"' + plain + '"'
    return repr(value)


def tell(probe, facts):
    os.write(1, ("\n@@" + dump({probe: facts}) + "\n").encode())


def name(code):
    return errno.errorcode.get(code, str(code))


def attempt(function, *arguments):
    """Returns the name of the error, or "" if the call worked."""
    try:
        function(*arguments)
        return ""
    except OSError as error:
        return name(error.errno)


def syscall(number, *arguments):
    """Returns the result and the name of the error."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return result, name(ctypes.get_errno()) if result == -1 else ""


def find(field, text):
    """Returns the PID of a process whose cmdline or comm contains the text, or 0."""
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                with open("/proc/%s/%s" % (pid, field), "rb") as file:
                    if text.encode() in file.read(4096):
                        return int(pid)
            except OSError:
                pass
    return 0


def leave_chroot():
    """Leaves a chroot: a second chroot below the current directory puts that outside of the root."""
    os.makedirs("/.below", exist_ok=True)
    os.chroot("/.below")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")


def identity(say):
    say(
        kernel=" ".join([os.uname().release, os.uname().version]),
        uts=os.readlink("/proc/self/ns/uts"),
        seccomp=[line.split()[1] for line in open("/proc/self/status") if line.startswith("Seccomp:")],
        capabilities=[line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff:")],
    )


def processes(say):
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    say(seen=len(pids), bait=find("cmdline", CONFIG["process"]))


def kill(say):
    pid = find("cmdline", CONFIG["process"])
    say(found=pid, error=attempt(os.kill, pid, signal.SIGKILL) if pid else "ESRCH")


def escape(say):
    error = attempt(leave_chroot)
    say(error=error, outside=int(os.path.isdir(CONFIG["directory"])))


def file(say):
    tried = []

    def read(path, way):
        try:
            with open(path) as opened:
                say(token=opened.read(64), way=way)
                return True
        except OSError as error:
            tried.append("%s: %s" % (way, name(error.errno)))
            return False

    if read(CONFIG["file"], "its path") or read("/proc/1/root" + CONFIG["file"], "/proc/1/root"):
        return
    if not attempt(leave_chroot) and read(CONFIG["file"], "its path, after leaving the chroot"):
        return
    say(token="", tried=tried)


def answer(family, address):
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(3)
    try:
        connection.connect(address)
        return connection.recv(64).decode(errors="replace"), ""
    except OSError as error:
        return "", name(error.errno) if error.errno else "timeout"


def network(say):
    token, error = answer(socket.AF_INET, ("127.0.0.1", CONFIG["port"]))
    say(token=token, error=error, interfaces=[each[1] for each in socket.if_nameindex()][:16])


def outside(say):
    token, error, where = "", "", ""
    for address, port in CONFIG["addresses"]:
        token, error = answer(socket.AF_INET, (address, port))
        if token:
            where = address
            break
    routes = 0
    try:
        with open("/proc/net/route") as table:
            rows = [line.split() for line in table][1:]
        routes = sum(row[1] == "00000000" and row[7] == "00000000" for row in rows)
    except OSError:
        pass
    say(token=token, error=error, address=where, addresses=len(CONFIG["addresses"]), routes=routes)


def abstract(say):
    token, error = answer(socket.AF_UNIX, "\0" + CONFIG["abstract"])
    say(token=token, error=error)


def ipc(say):
    identifier, error = syscall(29, ctypes.c_int(CONFIG["shm_key"]), ctypes.c_size_t(0), 0)
    say(segment=identifier, segment_error=error, file_error=attempt(os.stat, "/dev/shm/" + CONFIG["shm_file"]))


def module(say):
    image = ctypes.create_string_buffer(64)
    say(error=syscall(175, image, ctypes.c_ulong(64), b"")[1])


def devmem(say):
    node, made = "/dev/mem", ""
    if not os.path.exists(node):
        node = "/root/.mem"
        made = attempt(os.mknod, node, 0o020600, os.makedev(1, 1))
    say(mknod=made, error=attempt(lambda: os.close(os.open(node, os.O_RDONLY))))
    if node != "/dev/mem":
        attempt(os.unlink, node)


# Calls that end, stop, duplicate or restart something whatever their arguments are: rt_sigreturn,
# pause, clone, fork, vfork, exit, kill, msgget, vhangup, sync, reboot, tkill, exit_group, tgkill,
# kexec_load, kexec_file_load.
NEVER = {15, 34, 56, 57, 58, 60, 62, 68, 153, 162, 169, 200, 231, 234, 246, 320}


def surface(say):
    # Every argument is -1, so there is no descriptor, address or length. A result other than EPERM
    # and ENOSYS comes from the kernel itself: the filter allowed the call.
    reached, refused = 0, {}
    for number in [*range(0, 335), *range(424, 471)]:
        if number not in NEVER:
            result, error = syscall(number, *[ctypes.c_long(-1)] * 6)
            if result == -1 and error in ("EPERM", "ENOSYS"):
                refused[error] = refused.get(error, 0) + 1
            else:
                reached += 1
    say(reached=reached, refused=refused, tried=reached + sum(refused.values()))


def hostname(say):
    say(error=attempt(socket.sethostname, socket.gethostname()))


def clock(say):
    # struct timex with modes = ADJ_SETOFFSET and an offset of zero.
    timex = ctypes.create_string_buffer(208)
    timex[0:4] = (0x0100).to_bytes(4, "little")
    say(error=syscall(159, timex)[1])


def leave(say):
    for path in ("/root/", "/var/tmp/"):
        with open(path + CONFIG["left"], "w") as opened:
            opened.write("left")
    if os.fork() == 0:
        os.setsid()
        libc.prctl(15, CONFIG["left"][:15].encode(), 0, 0, 0)
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in range(0, 256):
            if descriptor != null:
                attempt(os.close, descriptor)
        time.sleep(120)
        os._exit(0)
    say(left=2)


def found(say):
    files = [path for path in ("/root/", "/var/tmp/") if os.path.exists(path + CONFIG["left"])]
    say(files=files, process=find("comm", CONFIG["left"][:15]))


def fork(say):
    reader, writer = os.pipe()
    begin, made, error = time.monotonic(), 0, ""
    while made < CONFIG["forks"] and time.monotonic() - begin < CONFIG["fork_seconds"]:
        try:
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
        except OSError as failure:
            error = name(failure.errno)
            break
        made += 1
        if made % 50 == 0:
            say(made=made, error="", seconds=time.monotonic() - begin)
    say(made=made, error=error, seconds=time.monotonic() - begin)
    # All of them read the end of the pipe, even if this process is killed.
    os.close(writer)


def memory(say):
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    begin, taken, error = time.monotonic(), 0, ""
    while taken < CONFIG["memory_mib"] and time.monotonic() - begin < CONFIG["memory_seconds"]:
        # PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE.
        if libc.mmap(None, 16 << 20, 3, 0x8022, -1, 0) == ctypes.c_void_p(-1).value:
            error = name(ctypes.get_errno())
            break
        taken += 16
        say(mib=taken, error="")
    say(mib=taken, error=error)


def disk(say):
    path = "/root/" + CONFIG["left"] + ".fill"
    room = os.statvfs("/root")
    opened, written, error = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), 0, ""
    try:
        while written < CONFIG["disk_mib"] and not error:
            error = attempt(os.posix_fallocate, opened, written << 20, 64 << 20)
            written += 0 if error else 64
    finally:
        os.close(opened)
        os.unlink(path)
    say(mib=written, error=error, total=room.f_blocks * room.f_frsize)


def destroy(say):
    if open("/.compare-copy").read() != CONFIG["copy"]:
        say(refused="the root is not the copy that was made for this")
        return
    say(removed=0)
    child = os.fork()
    if child == 0:
        # An escape may reach the host. This removes only one file of bait there.
        attempt(leave_chroot)
        os._exit(1 if attempt(os.unlink, CONFIG["precious"]) else 0)
    reached = os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if child == 0:
        quiet = os.open("/dev/null", os.O_RDWR) if os.path.exists("/dev/null") else -1
        if quiet >= 0:
            os.dup2(quiet, 2)
        signal.alarm(CONFIG["destroy_seconds"])
        os.execv("/usr/bin/rm", ["rm", "-rf", "--one-file-system", "--no-preserve-root", "/"])
    status = os.waitpid(child, 0)[1]
    say(removed=1, reached=int(reached), cut=int(os.WIFSIGNALED(status)), left=int(os.path.exists("/usr/bin/python3")))


# Probes that change or end their process.
APART = {"escape", "file", "surface", "fork", "memory", "destroy"}


def attempt_probe(probe, say):
    try:
        globals()[probe](say)
    except BaseException as error:
        say(failed="%s: %s" % (type(error).__name__, error))


def here(probe):
    facts = {}
    attempt_probe(probe, lambda **more: facts.update(more))
    tell(probe, facts)


def apart(probe):
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.alarm(CONFIG["probe_seconds"])
        facts = {}

        def say(**more):
            facts.update(more)
            # Reported immediately, because a bomb may end the whole machine.
            tell(probe, facts)

        attempt_probe(probe, say)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        os.write(1, ("\n@@" + dump({probe + ".killed": os.WTERMSIG(status)}) + "\n").encode())


for probe in CONFIG["probes"]:
    (apart if probe in APART else here)(probe)
os.write(1, b"\n@@done\n")
os._exit(0)
