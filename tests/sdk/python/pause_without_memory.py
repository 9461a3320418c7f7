"""Pause, resume and snapshot without memory: the disk stays, processes end, and what comes back has booted. Exit status 0 when all is as E2B has it."""

from e2b import InvalidArgumentException, Sandbox, SandboxException, SandboxState
from expect import raises


# Seconds that a kernel may take to boot where it is interpreted, on a host that is busy.
BOOT = 600


def boot(sandbox):
    return sandbox.files.read("/proc/sys/kernel/random/boot_id")


def sleeps(sandbox):
    return any("sleep 1000" in argument for process in sandbox.commands.list() for argument in process.args)


def begin(sandbox):
    """A process that runs, and a file that was written just now. Returns which boot of its kernel this is."""
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
    # No request wakes what has to boot.
    raises(SandboxException, lambda: sandbox.commands.run("true"))
    again = Sandbox.connect(sandbox.sandbox_id, timeout=3000, request_timeout=BOOT)
    assert again.sandbox_id == sandbox.sandbox_id and again.is_running()
    has_booted_from_its_disk(again, before)

    # A snapshot without memory: the sandbox runs on, and what is made from it boots.
    before = begin(again)
    snapshot = again.create_snapshot(mode="filesystem")
    assert sleeps(again) and boot(again) == before
    other = Sandbox.create(snapshot.snapshot_id, timeout=3000, request_timeout=BOOT)
    made.append(other)
    has_booted_from_its_disk(other, before)
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)

    # What was paused with memory can be resumed without: what was on its disk is there.
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
