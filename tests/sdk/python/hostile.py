"""Requests that no client of E2B makes: each is refused with the right status, and the server keeps
working. Exits with 0 if it does."""

import base64
import gzip
import http.client
import json
import os
import struct
import urllib.parse

from e2b import Sandbox

edge = urllib.parse.urlparse(os.environ["E2B_SANDBOX_URL"])
sandbox = Sandbox.create(timeout=900)
own = {"E2b-Sandbox-Id": sandbox.sandbox_id, "X-Access-Token": sandbox._envd_access_token}
UNARY, STREAM = {"Content-Type": "application/json"}, {"Content-Type": "application/connect+json"}


def ask(method, path, headers, body=None):
    connection = http.client.HTTPConnection(edge.hostname, edge.port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    return answer.status, said


def frame(message, flags=0):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data


def frames(said):
    found = []
    while said:
        flags, length = struct.unpack(">BI", said[:5])
        found.append((flags, json.loads(said[5 : 5 + length])))
        said = said[5 + length :]
    return found


def code(status_and_body):
    return status_and_body[0], json.loads(status_and_body[1])["code"]


try:
    listing = "/process.Process/List"
    # A client without the token cannot distinguish a sandbox that requires it from one that does
    # not exist.
    for sandbox_id in (sandbox.sandbox_id, "a" * 16):
        without = {"E2b-Sandbox-Id": sandbox_id}
        for token in ({}, {"X-Access-Token": "x" * 48}):
            status, said = ask("POST", listing, {**without, **token, **UNARY}, "{}")
            words = "unauthorized access, please provide a valid access token or method signing if supported"
            assert (status, json.loads(said)) == (401, {"code": 401, "message": words}), said
        assert ask("GET", "/files?path=/etc/passwd", without)[0] == 401
    assert ask("POST", listing, {**UNARY}, "{}")[0] == 400
    assert ask("POST", listing, {**own, "E2b-Sandbox-Id": "../../etc", **UNARY}, "{}")[0] == 400
    assert code(ask("POST", "/process.Process/Nothing", {**own, **UNARY}, "{}")) == (404, "unimplemented")
    assert ask("GET", listing, own)[0] == 405
    assert ask("GET", "/health", {"E2b-Sandbox-Id": sandbox.sandbox_id})[0] == 204

    # Messages.
    assert ask("POST", listing, {**own, **UNARY}, "{}")[0] == 200
    assert ask("POST", listing, {**own, "Content-Type": "application/proto"}, b"\x08")[0] == 415
    assert code(ask("POST", listing, {**own, **UNARY}, "{")) == (400, "invalid_argument")
    assert code(ask("POST", listing, {**own, **UNARY}, b"\xff")) == (400, "invalid_argument")
    assert code(ask("POST", listing, {**own, **UNARY}, "[" * 100_000)) == (400, "invalid_argument")
    assert code(ask("POST", listing, {**own, **UNARY}, " " * (5 << 20))) == (429, "resource_exhausted")
    packed = {**UNARY, "Content-Encoding": "gzip"}
    assert ask("POST", listing, {**own, **packed}, gzip.compress(b"{}"))[0] == 200
    assert code(ask("POST", listing, {**own, **packed}, gzip.compress(b" " * (50 << 20)))) == (429, "resource_exhausted")
    assert code(ask("POST", listing, {**own, **packed}, b"{}")) == (400, "invalid_argument")
    assert code(ask("POST", listing, {**own, **UNARY, "Content-Encoding": "br"}, b"{}")) == (501, "unimplemented")
    assert code(ask("POST", listing, {**own, **UNARY, "Connect-Timeout-Ms": "soon"}, b"{}")) == (400, "invalid_argument")
    late = ask("POST", listing, {**own, **UNARY, "Connect-Timeout-Ms": "1"}, b"{}")
    assert code(late) == (504, "deadline_exceeded"), late

    # Frames.
    start = "/process.Process/Start"
    for body in (b"", b"\0", frame(b"{"), frame({}, 2), frame({}, 0x80), frame({})[:-1], frame({}) * 2, frame({}),
                 b"\0\xff\xff\xff\xff", frame({"process": {"cmd": ""}}), frame({"process": {"cmd": "a\0b"}}),
                 frame({"process": {"cmd": "true", "envs": {"A=B": "c"}}}),
                 frame({"process": {"cmd": "true"}, "pty": {"size": {"rows": 70000}}}), frame(gzip.compress(b"{}"), 1)):
        status, said = ask("POST", start, {**own, **STREAM}, body)
        last = frames(said)[-1]
        assert status == 200 and last[0] == 2, (body[:20], status, said)
        assert last[1]["error"]["code"] in ("invalid_argument", "resource_exhausted"), (body[:20], last)
    assert ask("POST", start, {**own, **UNARY}, "{}")[0] == 415

    # A valid request to start a command, built by hand. The server sends keepalives if the client
    # asks for them.
    status, said = ask(
        "POST", start, {**own, **STREAM, "Keepalive-Ping-Interval": "1", "Connect-Content-Encoding": "gzip"},
        frame(gzip.compress(json.dumps({"process": {"cmd": "/bin/sleep", "args": ["3"]}, "stdin": False}).encode()), 1),
    )
    events = frames(said)
    assert "start" in events[0][1]["event"] and events[-1] == (2, {}), events
    assert {"event": {"keepalive": {}}} in [message for _, message in events], events
    assert events[-2][1]["event"]["end"]["exitCode"] == 0, events

    # Files.
    assert ask("GET", "/files?path=a&path=b", own)[0] == 400
    assert ask("GET", "/files?path=a%00b", own)[0] == 400
    assert ask("GET", "/files?path=" + "a" * 5000, own)[0] == 400
    assert ask("GET", "/files?path=~root/x", own)[0] == 400
    assert ask("GET", "/files?path=/etc/passwd&username=nobody-of-that-name", own)[0] == 401
    assert ask("POST", "/files?path=/tmp/x", {**own, "Content-Type": "text/plain"}, "x")[0] == 400
    assert ask("POST", "/files", {**own, "Content-Type": "application/octet-stream"}, "x")[0] == 400
    octets = {**own, "Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    assert ask("POST", "/files?path=/tmp/x", octets, b"no gzip")[0] == 400
    form = {**own, "Content-Type": "multipart/form-data; boundary=B"}
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\nx\r\n'
    assert ask("POST", "/files", form, b"--B--\r\n")[0] == 400
    assert ask("POST", "/files", form, part % b"" + b"--B--\r\n")[0] == 400
    assert ask("POST", "/files?path=/tmp/x", form, part % b"a" + part % b"b" + b"--B--\r\n")[0] == 400
    try:
        assert ask("POST", "/files", form, b"--B\r\nX: " + b"x" * (4 << 20))[0] == 400
    except ConnectionError:
        pass  # The server refused the request before it was complete.

    # The number of watchers is limited.
    watch = json.dumps({"path": "/tmp"})
    made = []
    while len(made) < 100:
        status, said = ask("POST", "/filesystem.Filesystem/CreateWatcher", {**own, **UNARY}, watch)
        if status != 200:
            break
        made.append(json.loads(said)["watcherId"])
    assert (len(made), status) == (32, 429), (len(made), status, said)
    gone = json.dumps({"watcherId": made[0]})
    assert ask("POST", "/filesystem.Filesystem/RemoveWatcher", {**own, **UNARY}, gone) == (200, b"{}")
    assert code(ask("POST", "/filesystem.Filesystem/GetWatcherEvents", {**own, **UNARY}, gone)) == (404, "not_found")

    # The server still works.
    user = base64.b64encode(b"root:").decode()
    status, said = ask("POST", "/filesystem.Filesystem/Stat", {**own, **UNARY, "Authorization": f"Basic {user}"}, '{"path":""}')
    assert status == 200 and json.loads(said)["entry"]["path"] == "/root", said
finally:
    sandbox.kill()
print("hostile: passed")
