"""Volumes: every call of the client, mounted in a sandbox, and what hostile requests get. Exits with
0 if all is as with E2B."""

import asyncio
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request

from e2b import AsyncVolume, NotFoundException, Sandbox, SandboxException, Volume
from e2b.exceptions import AuthenticationException, VolumeException, VolumePathNotFoundException
from expect import raises

API = os.environ["E2B_API_URL"]


def request(method, path, token, body=None):
    """Sends a request as it is, and returns the status and the body."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    asked = urllib.request.Request(API + path, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def content(volume, what, path, method="GET", token=None, body=None, **query):
    query = urllib.parse.urlencode({"path": path, **query})
    token = volume.token if token is None else token
    return request(method, f"/volumecontent/{volume.volume_id}/{what}?{query}", token, body)


def files(volume):
    """The calls about files and directories."""
    written = volume.write_file("a.txt", "text", uid=1000, gid=1001, mode=0o640)
    assert (written.name, written.path, written.type, written.size) == ("a.txt", "/a.txt", "file", 4), written
    assert (written.uid, written.gid, written.mode, written.target) == (1000, 1001, 0o640, None), written
    assert abs((written.mtime - written.ctime).total_seconds()) < 60, written
    # Without them, owner and mode stay.
    again = volume.write_file("/a.txt", b"\x00\xffbytes")
    assert (again.uid, again.mode, again.size) == (1000, 0o640, 7), again
    assert volume.read_file("a.txt", format="bytes") == b"\x00\xffbytes"
    large = os.urandom(3 << 20)
    assert volume.write_file("large", io.BytesIO(large)).size == len(large)
    assert b"".join(volume.read_file("large", format="stream")) == large
    assert volume.write_file("empty", "").size == 0 and volume.read_file("empty") == ""
    raises(VolumePathNotFoundException, lambda: volume.write_file("no/such/f", "x"))
    assert volume.write_file("some/new/f", "x", force=True).path == "/some/new/f"
    raises(VolumePathNotFoundException, lambda: volume.read_file("missing"))
    raises(VolumePathNotFoundException, lambda: list(volume.read_file("missing", format="stream")))
    raises(VolumeException, lambda: volume.write_file("some", "x"))
    raises(VolumeException, lambda: volume.read_file("some"))

    made = volume.make_dir("d", mode=0o700, uid=7, gid=8)
    assert (made.type, made.mode, made.uid, made.gid) == ("directory", 0o700, 7, 8), made
    raises(VolumeException, lambda: volume.make_dir("d"))
    raises(VolumePathNotFoundException, lambda: volume.make_dir("x/y/z"))
    assert volume.make_dir("x/y/z", force=True).path == "/x/y/z"
    assert volume.make_dir("x/y/z", force=True).mode == 0o755
    assert [entry.path for entry in volume.list("/")] == [
        "/a.txt", "/d", "/empty", "/large", "/some", "/x"
    ], volume.list("/")
    assert [entry.path for entry in volume.list("x", depth=3)] == ["/x/y", "/x/y/z"]
    assert volume.list("d") == []
    raises(VolumePathNotFoundException, lambda: volume.list("missing"))
    raises(VolumeException, lambda: volume.list("a.txt"))
    raises(VolumeException, lambda: volume.list("/", depth=1000))

    changed = volume.update_metadata("a.txt", mode=384)
    assert (changed.mode, changed.uid) == (0o600, 1000), changed
    assert volume.update_metadata("a.txt", uid=1, gid=2).gid == 2
    raises(VolumeException, lambda: volume.update_metadata("a.txt", mode=0o4755))
    raises(VolumePathNotFoundException, lambda: volume.update_metadata("missing", uid=1))
    assert volume.exists("a.txt") and not volume.exists("missing")
    assert volume.get_info("/").type == "directory"
    assert volume.remove("x") is None and not volume.exists("x/y")
    volume.remove("empty")
    raises(VolumePathNotFoundException, lambda: volume.remove("empty"))
    raises(VolumeException, lambda: volume.remove("/"))


def hostile(volume, other):
    """Requests that no client sends."""
    for path in ["../../../../etc/passwd", "..", "/..", "a/../../b", "a\0b", "a" * 256, "a/" * 300]:
        for what, method in [("file", "GET"), ("dir", "GET"), ("path", "GET"), ("path", "DELETE"), ("dir", "POST")]:
            assert content(volume, what, path, method)[0] == 400, (what, method, path)
        assert content(volume, "file", path, "PUT", body=b"x", force="true")[0] == 400, path
    for token in ["", "x", volume.token[:-1], volume.token + "0", other.token]:
        status, body = content(volume, "file", "a.txt", token=token)
        assert status == 401 and json.loads(body)["code"] == 401, (token, status, body)
    assert request("GET", f"/volumecontent/{volume.volume_id}/file?path=a.txt", None)[0] == 401
    # Nothing tells a volume that exists from one that does not.
    missing = request("GET", "/volumecontent/0123456789abcdef0123/file?path=a.txt", volume.token)
    assert missing == content(volume, "file", "a.txt", token=other.token), missing
    assert request("GET", f"/volumecontent/..%2f..%2f{volume.volume_id}/file?path=a", volume.token)[0] == 401
    assert content(volume, "file", "a.txt", depth="-1")[0] == 400
    assert content(volume, "path", "a.txt", "PATCH", body=b"[")[0] == 400


async def asynchronous():
    volume = await AsyncVolume.create("asynchronous")
    try:
        await volume.write_file("d/f", "text", force=True)
        assert await volume.read_file("d/f") == "text"
        assert [entry.path for entry in await volume.list("/", depth=2)] == ["/d", "/d/f"]
        await volume.remove("d")
        assert not await volume.exists("d")
    finally:
        assert await AsyncVolume.destroy(volume.volume_id)


def mounted(volume):
    """A sandbox and clients use the same files."""
    with_volume = {"/mnt/data": volume, "/home/user/more": "more"}
    raises(SandboxException, lambda: Sandbox.create(volume_mounts={"/mnt/data": "missing"}))
    raises(SandboxException, lambda: Sandbox.create(volume_mounts={"/proc": volume}))
    raises(
        SandboxException,
        lambda: Sandbox.create(volume_mounts=with_volume, lifecycle={"on_timeout": "pause"}),
    )
    sandbox = Sandbox.create(timeout=600, volume_mounts=with_volume)
    try:
        mounts = sandbox.get_info().volume_mounts
        assert sorted((mount["name"], mount["path"]) for mount in mounts) == [
            ("more", "/home/user/more"), ("shared-data", "/mnt/data")
        ], mounts
        script = """
            set -e; cd /mnt/data; id -u; stat -c '%u:%g:%a' a.txt d; cat some/new/f; echo
            echo made >made; chmod 750 made; stat -c '%u:%a' made; mkdir sub; mv made sub/made
            ln -s /etc/passwd planted; ln -s / rootdir; df --output=size . | tail -1
            (head -c 20000000 /dev/zero >big) 2>&1 | sed 's/.*: //'; rm big
            truncate -s 1T sparse 2>&1 | sed 's/.*: //'; rm -f sparse
        """
        result = sandbox.commands.run(script, timeout=300)
        lines = result.stdout.splitlines()
        no_room = "No space left on device"
        assert lines[1:4] == ["1:2:600", "7:8:700", "x"], result
        assert lines[4] == f"{lines[0]}:750" and lines[5].strip() == "16384", result
        assert no_room in lines[6] and no_room in lines[7], result
        assert volume.read_file("sub/made") == "made\n"
        assert volume.get_info("sub/made").uid == int(lines[0])
        # Links of the sandbox are shown, and never followed.
        planted = volume.get_info("planted")
        assert (planted.type, planted.target) == ("symlink", "/etc/passwd"), planted
        for path in ["planted", "rootdir/etc/passwd", "rootdir/new"]:
            raises(VolumeException, lambda: volume.read_file(path))
            raises(VolumeException, lambda: volume.write_file(path, "x", force=True))
        raises(VolumeException, lambda: volume.list("rootdir"))
        raises(VolumeException, lambda: volume.update_metadata("planted", uid=0))
        volume.remove("rootdir")
        # What a client writes is there for the sandbox, also while it runs.
        volume.write_file("from-client", "client")
        assert sandbox.files.read("/mnt/data/from-client") == "client"
        raises(VolumeException, lambda: volume.write_file("too-large", b"x" * (17 << 20)))
        assert not volume.exists("too-large")
        raises(VolumeException, lambda: Volume.destroy(volume.volume_id))
        raises(SandboxException, lambda: sandbox.pause())
        raises(SandboxException, lambda: sandbox.create_snapshot())
    finally:
        sandbox.kill()


volume = Volume.create("shared-data")
other = Volume.create("more")
try:
    assert volume.name == "shared-data" and volume.token and volume.token != other.token
    raises(VolumeException, lambda: Volume.create("shared-data"))
    raises(VolumeException, lambda: Volume.create("not a name"))
    assert sorted(info.name for info in Volume.list()) == ["more", "shared-data"]
    assert Volume.get_info(volume.volume_id).token == volume.token
    raises(NotFoundException, lambda: Volume.get_info("0123456789abcdef0123"))
    connected = Volume.connect(volume.volume_id)
    assert connected.name == volume.name
    files(connected)
    hostile(volume, other)
    asyncio.run(asynchronous())
    mounted(volume)
    raises(AuthenticationException, lambda: Volume.list(api_key="e2b_" + "0" * 40))
finally:
    destroyed = [Volume.destroy(one.volume_id) for one in (volume, other)]
assert destroyed == [True, True] and not Volume.destroy(volume.volume_id)
raises(VolumePathNotFoundException, lambda: volume.read_file("a.txt"))
assert Volume.list() == []
