"""Pause, resume and snapshot without memory: files stay, processes end, the machine boots. Exits
with 0 if all is as with E2B."""

from e2b import InvalidArgumentException, Sandbox, SandboxException, SandboxState
from expect import raises


# Longest boot in seconds of a kernel that is interpreted, on a busy host.
BOOT = 600


def boot(sandbox):
    return sandbox.files.read("/proc/sys/kernel/random/boot_id")


def sleeps(sandbox):
    return any("sleep 1000" in argument for process in sandbox.commands.list() for argument in process.args)


def begin(sandbox):
    """Starts a process and writes a file. Returns the boot ID of the kernel."""
    sandbox.files.write("/home/user/state", "1")
    sandbox.commands.run("echo 2 >> /home/user/state", timeout=600)
    sandbox.commands.run("sleep 1000", background=True, timeout=0)
    assert sleeps(sandbox)
    return boot(sandbox)


def has_booted_from_its_disk(sandbox, before):
    assert sandbox.files.read("/home/user/state") == "12\n", sandbox.files.read("/home/user/state")
    assert not sleeps(sandbox) and boot(sandbox) != before


made = []
try:
    sandbox = Sandbox.create(timeout=3000, metadata={"a": "b"})
    made.append(sandbox)
    before = begin(sandbox)
    assert sandbox.pause(mode="filesystem") and not sandbox.pause(mode="filesystem")
    assert not sandbox.is_running()
    info = sandbox.get_info()
    assert info.state == SandboxState.PAUSED and info.metadata == {"a": "b"}, info
    # No request resumes a sandbox that has to boot.
    raises(SandboxException, lambda: sandbox.commands.run("true"))
    again = Sandbox.connect(sandbox.sandbox_id, timeout=3000, request_timeout=BOOT)
    assert again.sandbox_id == sandbox.sandbox_id and again.is_running()
    has_booted_from_its_disk(again, before)

    # A snapshot without memory: the sandbox keeps running, and sandboxes created from the snapshot
    # boot.
    before = begin(again)
    snapshot = again.create_snapshot(mode="filesystem")
    assert sleeps(again) and boot(again) == before
    other = Sandbox.create(snapshot.snapshot_id, timeout=3000, request_timeout=BOOT)
    made.append(other)
    has_booted_from_its_disk(other, before)
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)

    # A sandbox that was paused with memory can be resumed without it, with the files of its disk.
    before = begin(other)
    other.commands.run("sync", timeout=600)
    assert other.pause()
    rebooted = Sandbox.connect(other.sandbox_id, timeout=3000, on_resume="reboot", request_timeout=BOOT)
    has_booted_from_its_disk(rebooted, before)

    raises(
        InvalidArgumentException,
        lambda: Sandbox.create(lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}, "auto_resume": True}),
    )
finally:
    for one in made:
        one.kill()
