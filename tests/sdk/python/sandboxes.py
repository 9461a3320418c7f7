"""Sandboxes: create, connect, list, extend, measure, snapshot, fork, pause, kill. Exits with 0 if
all is as with E2B."""

import datetime

from e2b import (
    AuthenticationException,
    NotFoundException,
    RateLimitException,
    Sandbox,
    SandboxException,
    SandboxQuery,
    SandboxState,
)
from expect import raises


made = []
try:
    sandbox = Sandbox.create(timeout=900, metadata={"user": "1", "kind": "a b"}, envs={"A": "1"})
    made.append(sandbox)
    assert sandbox.is_running()
    assert sandbox.get_host(8000).startswith(f"8000-{sandbox.sandbox_id}.")

    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id and info.template_id == "base", info
    assert info.metadata == {"user": "1", "kind": "a b"} and info.state == SandboxState.RUNNING, info
    assert info.cpu_count == 1 and info.memory_mb >= 128 and info.lifecycle["on_timeout"] == "kill", info
    now = datetime.datetime.now(datetime.timezone.utc)
    assert abs((info.started_at - now).total_seconds()) < 120, (info.started_at, now)
    assert 800 < (info.end_at - now).total_seconds() <= 900, (info.end_at, now)
    sandbox.set_timeout(1500)
    assert (sandbox.get_info().end_at - info.end_at).total_seconds() > 500

    # Listings by metadata, by state and in pages.
    def listed(**query):
        pages, found = Sandbox.list(query=SandboxQuery(**query) if query else None, limit=1), []
        while pages.has_next:
            found += [one.sandbox_id for one in pages.next_items()]
        return found

    assert listed() == [sandbox.sandbox_id]
    assert listed(metadata={"user": "1"}) == [sandbox.sandbox_id] and listed(metadata={"user": "2"}) == []
    assert listed(metadata={"kind": "a b"}) == [sandbox.sandbox_id]
    assert listed(state=[SandboxState.PAUSED]) == []

    metrics = sandbox.get_metrics()
    assert metrics and metrics[-1].mem_total == info.memory_mb << 20 and metrics[-1].mem_used > 0, metrics

    # Any client of the key can connect to the sandbox by its ID.
    again = Sandbox.connect(sandbox.sandbox_id)
    sandbox.files.write("/home/user/state", "1")
    assert again.files.read("/home/user/state") == "1"

    # A snapshot is a template.
    snapshot = sandbox.create_snapshot(name="state-one")
    assert snapshot.names == ["state-one"], snapshot
    assert [one.snapshot_id for one in Sandbox.list_snapshots().next_items()] == [snapshot.snapshot_id]
    sandbox.files.write("/home/user/state", "2")
    from_snapshot = Sandbox.create(snapshot.snapshot_id, timeout=900)
    made.append(from_snapshot)
    assert from_snapshot.files.read("/home/user/state") == "1"
    by_name = Sandbox.create("state-one", timeout=900, envs={"A": "2"})
    made.append(by_name)
    assert by_name.get_info().template_id == snapshot.snapshot_id
    assert by_name.commands.run("echo $A; cat state").stdout == "2\n1"
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) and not Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert from_snapshot.files.read("/home/user/state") == "1"

    # Copies continue from the same state, and then differ.
    copies = sandbox.fork(timeout=900, count=2)
    assert len(copies) == 2 and all(isinstance(copy, Sandbox) for copy in copies), copies
    made += copies
    copies[0].files.write("/home/user/state", "3")
    assert copies[1].files.read("/home/user/state") == "2" and sandbox.files.read("/home/user/state") == "2"
    assert copies[0].get_info().metadata == {"user": "1", "kind": "a b"}

    # A paused sandbox is on disk, is listed and does not run. A connection resumes it in its old
    # state.
    background = sandbox.commands.run("sleep 1000", background=True)
    assert sandbox.pause() and not sandbox.pause()
    assert not sandbox.is_running() and sandbox.get_info().state == SandboxState.PAUSED
    assert listed(state=[SandboxState.PAUSED]) == [sandbox.sandbox_id]
    raises(SandboxException, lambda: sandbox.commands.run("true"))
    sandbox.connect(timeout=900)
    assert sandbox.is_running() and sandbox.files.read("/home/user/state") == "2"
    assert background.pid in [process.pid for process in sandbox.commands.list()]

    # The first request resumes a paused sandbox that was created with auto_resume.
    resting = Sandbox.create(timeout=900, lifecycle={"on_timeout": "pause", "auto_resume": True})
    made.append(resting)
    assert resting.get_info().lifecycle == {"on_timeout": "pause", "auto_resume": True}, resting.get_info().lifecycle
    assert resting.pause()
    assert resting.commands.run("echo woken").stdout == "woken\n"
    assert resting.get_info().state == SandboxState.RUNNING

    # Failures are the exceptions of the SDK.
    raises(NotFoundException, lambda: Sandbox.connect("aaaaaaaaaaaaaaaa"))
    raises(AuthenticationException, lambda: Sandbox.create(api_key="e2b_" + "0" * 40))
    assert "was not found" in str(raises(SandboxException, lambda: Sandbox.create("no-such-template")))
    raises(SandboxException, lambda: Sandbox.create(network={"allow_out": ["8.8.8.8"]}))
    assert RateLimitException

    # A killed sandbox is gone for every client.
    assert sandbox.kill() and not sandbox.kill() and not Sandbox.kill("aaaaaaaaaaaaaaaa")
    assert not sandbox.is_running()
    raises(NotFoundException, sandbox.get_info)
finally:
    for one in made:
        one.kill()
assert not Sandbox.list().next_items()
