"""Files: read, write, list, move, remove, signed addresses. Exits with 0 if all is as with E2B."""

import io
import json
import os
import urllib.error
import urllib.request

from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotEnoughSpaceException,
    Sandbox,
    SandboxException,
    SandboxState,
)
from expect import raises


def request(url, data=None, headers=None):
    """Sends a request as any holder of a signed address: only the address names the sandbox."""
    headers = headers or {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


sandbox = Sandbox.create(timeout=900)
try:
    files = sandbox.files

    # All ways to write and read.
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

    # Where the user has no permission, root acts for the user.
    assert files.write("/app/src/main.py", "pass").path == "/app/src/main.py"
    info = files.get_info("/app/src/main.py")
    assert (info.owner, info.group, info.permissions, info.mode, info.size) == ("user", "user", "-rw-r--r--", 0o644, 4)
    assert files.get_info("/app").owner == "user"
    assert "root:" in files.read("/etc/shadow")

    # Listings and information.
    assert files.exists("a.txt") and not files.exists("none")
    info = files.get_info("deep")
    assert (info.name, info.type, info.path, info.owner) == ("deep", FileType.DIR, "/home/user/deep", "user"), info
    assert info.permissions == "drwxr-xr-x" and info.modified_time.year >= 2024, info
    # A symbolic link is described as its target.
    links = "mkdir links && ln -s links/file link && cd links && ln -s ../a.txt file && ln -s /tmp directory && ln -s none nowhere"
    sandbox.commands.run(links, timeout=0)
    link = files.get_info("link")
    assert (link.type, link.mode, link.symlink_target) == (FileType.FILE, 0o644, "/home/user/a.txt"), link
    assert (link.permissions, link.path) == ("Lrwxrwxrwx", "/home/user/link"), link
    links = {entry.name: (entry.type, entry.symlink_target) for entry in files.list("links")}
    assert links == {"file": (FileType.FILE, link.symlink_target), "directory": (FileType.DIR, "/tmp")}, links
    # A broken link has no type, and clients omit it from lists.
    nowhere = files.get_info("links/nowhere")
    assert (nowhere.type, nowhere.mode, nowhere.symlink_target) == (None, 0, "/home/user/links/nowhere"), nowhere
    assert files.get_info("/tmp").permissions == "dtrwxrwxrwx" and files.get_info("/tmp").mode == 0o777
    assert files.rename("link", "moved").symlink_target == "/home/user/a.txt"
    sandbox.commands.run("rm -r links moved; ln -s a.txt link")

    # Metadata is that of the last write only. Programs in the sandbox see it and can set it.
    tagged = files.write("tagged", "x", metadata={"Author": "me", "empty": ""})
    assert tagged.metadata == {"author": "me", "empty": ""}, tagged
    assert files.get_info("tagged").metadata == {"author": "me", "empty": ""}
    # Perl starts in a tenth of Python's time. (194 is listxattr, 191 getxattr, 188 setxattr.)
    inside = "my $f = q(tagged); my $n = my $v = qq(-) x 99; my @n = split /\\0/, substr $n, 0, syscall(194, $f, $n, 99);"
    inside += "for my $name (sort @n) { my $size = syscall(191, $f, $name, $v, 99); print $name, q(=), substr($v, 0, $size), q(;) }"
    inside += "my %new = (q(user.e2b.set), q(inside), q(user.other), q(x), q(user.e2b.binary), chr 255);"
    inside += "while (my ($name, $value) = each %new) { syscall(188, $f, $name, $value, length $value, 0) and die $! }"
    shown = sandbox.commands.run(f"perl -e '{inside}'", timeout=0).stdout
    assert shown == "user.e2b.author=me;user.e2b.empty=;", shown
    found = {entry.name: entry.metadata for entry in files.list("")}
    assert found["tagged"] == {"author": "me", "empty": "", "set": "inside"} and found["a.txt"] is None, found
    assert files.rename("tagged", "renamed").metadata == found["tagged"]
    assert files.write("renamed", "y", metadata={"b": "2"}).metadata == {"b": "2"}
    assert files.write("renamed", io.BytesIO(b"z")).metadata is None and files.get_info("renamed").metadata is None
    both = files.write_files([{"path": "one", "data": "1"}, {"path": "two", "data": "2"}], metadata={"of": "both"})
    assert [one.metadata for one in both] == [{"of": "both"}] * 2, both
    assert files.write("/app/tagged", "x", metadata={"a": "b"}).metadata == {"a": "b"}
    # ext4 stores attributes of a file in one block of 4096 bytes, headers included.
    large = files.write("large", "x", metadata={"k": "x" * 4000})
    assert len(large.metadata["k"]) == 4000
    refused = raises(InvalidArgumentException, lambda: files.write("large", "y", metadata={"k": "x" * 4096}))
    assert "total metadata size 4106 exceeds 4096 bytes" in str(refused), refused
    raises(InvalidArgumentException, lambda: files.write("large", "y", metadata={"k" * 247: ""}))
    assert files.read("large") == "x"
    assert files.make_dir("plain") and files.get_info("plain").metadata is None
    assert [entry.name for entry in files.list("deep")] == ["er"]
    assert [entry.path for entry in files.list("deep", depth=2)] == ["/home/user/deep/er", "/home/user/deep/er/noise"]
    assert {"a.txt", "deep", "link"} <= {entry.name for entry in files.list("")}

    # Errors have the messages of E2B.
    def says(words, kind, work):
        error = raises(kind, work)
        assert words in str(error), error

    says("path not found", FileNotFoundException, lambda: files.list("none"))
    says("path is not a directory: /home/user/a.txt", InvalidArgumentException, lambda: files.list("a.txt"))
    says("file not found", FileNotFoundException, lambda: files.get_info("none"))
    says("path '/home/user/none' does not exist", FileNotFoundException, lambda: files.read("none"))
    says("path '/home/user/deep' is a directory", InvalidArgumentException, lambda: files.read("deep"))
    says("path is a directory: /home/user/deep", InvalidArgumentException, lambda: files.write("deep", "x"))
    says("invalid username: 'no-one'", AuthenticationException, lambda: files.list("", user="no-one"))
    says("unknown user no-one", AuthenticationException, lambda: files.read("a.txt", user="no-one"))
    says("unknown user no-one", AuthenticationException, lambda: files.write("a.txt", "", user="no-one"))

    # Create, move, remove.
    assert files.make_dir("made/deep") is True and files.make_dir("made/deep") is False
    says("path already exists but it is not a directory", InvalidArgumentException, lambda: files.make_dir("a.txt"))
    moved = files.rename("a.txt", "new/place/b.txt")
    assert (moved.path, moved.size) == ("/home/user/new/place/b.txt", 7), moved
    says("source file not found", FileNotFoundException, lambda: files.rename("none", "other"))
    files.remove("deep")
    files.remove("none")
    assert not files.exists("deep")
    assert files.write("mine", "x", user="root").path == "/root/mine"

    # With a signed address, which carries its permission.
    path = "/home/user/new/place/b.txt"
    for expiration in (None, 60):
        status, body, headers = request(sandbox.download_url(path, use_signature_expiration=expiration))
        assert (status, body.decode(), headers["content-length"]) == (200, "größe", "7"), (status, body)
    signed = sandbox.download_url(path)
    assert request(sandbox.download_url("x", user="root"))[0] == 404, "the file is in another user's home"

    def refused(url, words, of=sandbox):
        # The response is the same with and without headers that name the sandbox.
        for headers in (None, {"E2b-Sandbox-Id": of.sandbox_id, "E2b-Sandbox-Port": "49983"}):
            status, body, _ = request(url, None, headers)
            assert (status, json.loads(body)) == (401, {"code": 401, "message": words}), (url, status, body)

    refused(signed.replace("b.txt", "c.txt"), "invalid signature")
    refused(signed.replace("signature=v1_", "signature=v1_x"), "invalid signature")
    refused(signed + "&username=root", "invalid signature")
    refused(sandbox.download_url(path, use_signature_expiration=-5), "signature is already expired")
    assert request(signed + "&path=/etc/shadow")[0] == 400
    own = {"E2b-Sandbox-Id": sandbox.sandbox_id}
    plain = signed.split("&signature=")[0]
    assert json.loads(request(plain, None, own)[1])["message"] == "missing signature query parameter"
    wrong = json.loads(request(plain, None, {**own, "X-Access-Token": "x"})[1])
    assert wrong == {"code": 401, "message": "access token present in header but does not match"}, wrong
    form = b'--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nsent\r\n--B--\r\n'
    form_type = {"Content-Type": "multipart/form-data; boundary=B"}
    assert request(signed, form, form_type)[0] == 401, "the address is signed for reading only"
    status, body, _ = request(sandbox.upload_url("signed.txt"), form, form_type)
    assert status == 200 and b'"path":"/home/user/signed.txt"' in body, body
    assert files.read("signed.txt") == "sent"

    # An incomplete form leaves the old file.
    status, body, _ = request(sandbox.upload_url("signed.txt"), form[:-12], form_type)
    assert status == 400, (status, body)
    assert files.read("signed.txt") == "sent" and not [e for e in files.list("") if "sandboxvm" in e.name]

    # A full disk is reported, and the old file stays. (285 is fallocate.)
    fill = "open F, '>', '/full'; for ($at = 0, $step = 1 << 30; $step >= 4096;)"
    fill += "{ if (syscall(285, fileno F, 0, $at, $step) == 0) { $at += $step } else { $step >>= 1 } }"
    sandbox.commands.run(f'perl -e "{fill}"'.replace("$", "\\$"), user="root")
    says("not enough disk space", NotEnoughSpaceException, lambda: files.write("signed.txt", "x" * 400_000))
    assert files.read("signed.txt") == "sent"
    sandbox.commands.run("rm /full", user="root")
    files.write("signed.txt", "again")

    # A valid address of a paused sandbox resumes it, and an invalid one does not.
    resting = Sandbox.create(timeout=900, lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        resting.files.write("kept", "here")
        signed = resting.download_url("kept")
        resting.pause()
        refused(signed.replace("kept", "other"), "invalid signature", resting)
        refused(resting.download_url("kept", use_signature_expiration=-5), "signature is already expired", resting)
        assert resting.get_info().state == SandboxState.PAUSED
        status, body, _ = request(signed)
        assert (status, body) == (200, b"here"), (status, body)
        assert resting.get_info().state == SandboxState.RUNNING
    finally:
        resting.kill()
    assert request(signed)[0] == 401, "the sandbox was killed"
finally:
    sandbox.kill()
print("files: passed")
