"""Watched directories. Exits with 0 if all is as with E2B."""

import asyncio
import http.client
import json
import os
import struct
import time
import urllib.parse

from e2b import (
    AsyncSandbox,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
)
from expect import raises


def until(handle, wanted):
    """Returns the events until all wanted ones have arrived."""
    seen = []
    for _ in range(300):
        seen += [(event.name, event.type) for event in handle.get_new_events()]
        if set(wanted) <= set(seen):
            return seen
        time.sleep(0.1)
    raise AssertionError(f"{wanted} are not all among {seen}")


sandbox = Sandbox.create(timeout=900)
try:
    files = sandbox.files
    kinds = FilesystemEventType

    # A write of a new file is CREATE and WRITE, and one of an existing file is WRITE. There are no
    # other events.
    files.make_dir("quiet/deep")
    handle = files.watch_dir("quiet", recursive=True)
    files.write("quiet/a", "1")
    files.write("quiet/deep/b", os.urandom(300_000))
    files.write("quiet/a", "2")
    files.write("quiet/last", "x")
    seen = until(handle, [("last", kinds.WRITE)])
    expected = [("a", kinds.CREATE), ("a", kinds.WRITE), ("deep/b", kinds.CREATE), ("deep/b", kinds.WRITE)]
    assert seen == [*expected, ("a", kinds.WRITE), ("last", kinds.CREATE), ("last", kinds.WRITE)], seen
    handle.stop()

    # Events have the information about each file if the client asks for it.
    handle = files.watch_dir("quiet", include_entry=True)
    files.write("quiet/told", "12345", metadata={"k": "v"})
    sandbox.commands.run("ln -s deep quiet/link; chmod 600 quiet/told; rm quiet/told")
    events = []
    while not any((event.name, event.type) == ("told", kinds.REMOVE) for event in events):
        events += handle.get_new_events()
        time.sleep(0.1)
    made = next(event.entry for event in events if (event.name, event.type) == ("told", kinds.CREATE))
    assert (made.path, made.size, made.type, made.metadata) == ("/home/user/quiet/told", 5, FileType.FILE, {"k": "v"}), made
    link = next(event.entry for event in events if event.name == "link")
    assert (link.type, link.symlink_target) == (FileType.DIR, "/home/user/quiet/deep"), link
    assert all(event.entry is None for event in events if event.type == kinds.REMOVE), events
    handle.stop()
    assert files.watch_dir("quiet", allow_network_mounts=True).stop() is None
    files.make_dir("watched/deep")
    flat, deep = files.watch_dir("watched"), files.watch_dir("watched", recursive=True)
    files.write("watched/a", "1")
    files.write("watched/deep/b", "2")
    files.rename("watched/a", "watched/c")
    files.remove("watched/c")
    seen = until(flat, [("c", kinds.CREATE), ("a", kinds.RENAME), ("c", kinds.REMOVE)])
    assert all("/" not in name for name, _ in seen), seen
    until(deep, [("deep/b", kinds.CREATE), ("c", kinds.REMOVE)])
    sandbox.commands.run("chmod 700 watched/deep/b; echo more >> watched/deep/b")
    until(deep, [("deep/b", kinds.CHMOD), ("deep/b", kinds.WRITE)])
    flat.stop()
    raises(SandboxException, flat.get_new_events)
    deep.stop()
    missing = raises(FileNotFoundException, lambda: files.watch_dir("none"))
    assert "path /home/user/none not found" in str(missing), missing
    file = raises(InvalidArgumentException, lambda: files.watch_dir("watched/deep/b"))
    assert "path /home/user/watched/deep/b not a directory" in str(file), file

    async def streamed():
        other = await AsyncSandbox.connect(sandbox.sandbox_id)
        seen, ended = [], []
        handle = await other.files.watch_dir("watched", on_event=seen.append, on_exit=ended.append, timeout=0)
        await other.files.write("watched/streamed", "x")
        for _ in range(300):
            if any((event.name, event.type) == ("streamed", kinds.CREATE) for event in seen):
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"no event came: {seen}")
        await handle.stop()
        # A watch that has expired reports that.
        await other.files.watch_dir("watched", on_event=seen.append, on_exit=ended.append, timeout=10)
        for _ in range(600):
            if any(ended):
                break
            await asyncio.sleep(0.1)
        assert any(ended), "the end of the watch was not reported"

    asyncio.run(streamed())

    # A watch without events sends keepalives if the client asks for them.
    edge = urllib.parse.urlparse(os.environ["E2B_SANDBOX_URL"])
    connection = http.client.HTTPConnection(edge.hostname, edge.port, timeout=60)
    message = json.dumps({"path": "/home/user/watched"}).encode()
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "X-Access-Token": sandbox._envd_access_token,
        "Content-Type": "application/connect+json",
        "Keepalive-Ping-Interval": "1",
    }
    connection.request("POST", "/filesystem.Filesystem/WatchDir", struct.pack(">BI", 0, len(message)) + message, headers)
    answer = connection.getresponse()
    said = []
    for _ in range(3):
        flags, length = struct.unpack(">BI", answer.read(5))
        said.append((flags, json.loads(answer.read(length))))
    assert said == [(0, {"start": {}}), (0, {"keepalive": {}}), (0, {"keepalive": {}})], said
    connection.close()
finally:
    sandbox.kill()
print("watch: passed")
