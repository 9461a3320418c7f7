"""Files: read, written, listed, moved, removed, by signed addresses. Exit status 0 when all is as E2B has it."""

import io
import os
import urllib.error
import urllib.request

from e2b import (
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotEnoughSpaceException,
    Sandbox,
    SandboxException,
)


def raises(kind, work):
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def request(url, sandbox, data=None, headers=None):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", **(headers or {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


sandbox = Sandbox.create(timeout=900)
try:
    files = sandbox.files

    # Written and read in every way there is.
    written = files.write("a.txt", "größe")
    assert (written.name, written.path, written.type) == ("a.txt", "/home/user/a.txt", FileType.FILE), written
    assert files.read("a.txt") == "größe"
    assert files.read("~/a.txt", format="bytes") == bytearray("größe".encode())
    noise = os.urandom(700_000)
    assert files.write("deep/er/noise", noise).path == "/home/user/deep/er/noise"
    assert bytes(files.read("/home/user/deep/er/noise", format="bytes")) == noise
    with files.read("deep/er/noise", format="stream") as stream:
        assert b"".join(stream) == noise
    files.write("octets", io.BytesIO(noise))
    assert bytes(files.read("octets", format="bytes", gzip=True)) == noise
    files.write("octets", "x" * 300_000, gzip=True)
    assert files.read("octets", gzip=True) == "x" * 300_000
    files.write("octets", "")
    assert files.read("octets") == "" and files.read("octets", format="bytes") == bytearray()
    both = files.write_files([{"path": "/tmp/one", "data": "1"}, {"path": 'sub/t"wo', "data": b"2"}])
    assert [one.path for one in both] == ["/tmp/one", '/home/user/sub/t"wo'], both
    assert files.read('sub/t"wo') == "2"

    # Where the user may not, root does, for the user.
    assert files.write("/app/src/main.py", "pass").path == "/app/src/main.py"
    info = files.get_info("/app/src/main.py")
    assert (info.owner, info.group, info.permissions, info.mode, info.size) == ("user", "user", "-rw-r--r--", 0o644, 4)
    assert files.get_info("/app").owner == "user"
    assert "root:" in files.read("/etc/shadow")

    # What there is.
    assert files.exists("a.txt") and not files.exists("none")
    info = files.get_info("deep")
    assert (info.name, info.type, info.path, info.owner) == ("deep", FileType.DIR, "/home/user/deep", "user"), info
    assert info.permissions == "drwxr-xr-x" and info.modified_time.year >= 2024, info
    sandbox.commands.run("ln -s a.txt link")
    link = files.get_info("link")
    assert (link.type, link.symlink_target) == (FileType.SYMLINK, "a.txt"), link
    assert [entry.name for entry in files.list("deep")] == ["er"]
    assert [entry.path for entry in files.list("deep", depth=2)] == ["/home/user/deep/er", "/home/user/deep/er/noise"]
    assert {"a.txt", "deep", "link"} <= {entry.name for entry in files.list("")}
    raises(FileNotFoundException, lambda: files.list("none"))
    raises(InvalidArgumentException, lambda: files.list("a.txt"))
    raises(FileNotFoundException, lambda: files.get_info("none"))
    raises(FileNotFoundException, lambda: files.read("none"))
    raises(InvalidArgumentException, lambda: files.read("deep"))
    raises(SandboxException, lambda: files.write("deep", "x"))

    # Made, moved, removed.
    assert files.make_dir("made/deep") is True and files.make_dir("made/deep") is False
    raises(InvalidArgumentException, lambda: files.make_dir("a.txt"))
    moved = files.rename("a.txt", "new/place/b.txt")
    assert (moved.path, moved.size) == ("/home/user/new/place/b.txt", 7), moved
    raises(FileNotFoundException, lambda: files.rename("none", "other"))
    files.remove("deep")
    files.remove("none")
    assert not files.exists("deep")
    assert files.write("mine", "x", user="root").path == "/root/mine"

    # By an address that carries its own permission.
    path = "/home/user/new/place/b.txt"
    for expiration in (None, 60):
        status, body, headers = request(sandbox.download_url(path, use_signature_expiration=expiration), sandbox)
        assert (status, body.decode(), headers["content-length"]) == (200, "größe", "7"), (status, body)
    signed = sandbox.download_url(path)
    assert request(signed.replace("b.txt", "c.txt"), sandbox)[0] == 401
    assert request(signed.replace("signature=v1_", "signature=v1_x"), sandbox)[0] == 401
    assert request(signed + "&username=root", sandbox)[0] == 401
    assert request(signed + "&path=/etc/shadow", sandbox)[0] == 401
    assert request(sandbox.download_url(path, use_signature_expiration=-5), sandbox)[0] == 401
    form = b'--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nsent\r\n--B--\r\n'
    form_type = {"Content-Type": "multipart/form-data; boundary=B"}
    assert request(signed, sandbox, form, form_type)[0] == 401, "signed for reading"
    status, body, _ = request(sandbox.upload_url("signed.txt"), sandbox, form, form_type)
    assert status == 200 and b'"path":"/home/user/signed.txt"' in body, body
    assert files.read("signed.txt") == "sent"

    # A form that breaks off leaves the old file.
    status, body, _ = request(sandbox.upload_url("signed.txt"), sandbox, form[:-12], form_type)
    assert status == 400, (status, body)
    assert files.read("signed.txt") == "sent" and not [e for e in files.list("") if "sandboxvm" in e.name]

    # A disk without room says so, and what was there stays. (285 is fallocate.)
    fill = "open F, '>', '/full'; for ($at = 0, $step = 1 << 30; $step >= 4096;)"
    fill += "{ if (syscall(285, fileno F, 0, $at, $step) == 0) { $at += $step } else { $step >>= 1 } }"
    sandbox.commands.run(f'perl -e "{fill}"'.replace("$", "\\$"), user="root")
    raises(NotEnoughSpaceException, lambda: files.write("signed.txt", "x" * 2_000_000))
    assert files.read("signed.txt") == "sent"
    sandbox.commands.run("rm /full", user="root")
    files.write("signed.txt", "again")
finally:
    sandbox.kill()
print("files: passed")
