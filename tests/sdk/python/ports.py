"""Servers in a sandbox, by its host's ports; and what is said of a sandbox that is gone. Exit status 0 when all is as it
should be."""

import base64
import http.client
import json
import os
import socket
import urllib.parse

from e2b import Sandbox, SandboxNotRunningException

SERVER = r'''
import base64, hashlib, http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.wfile.flush()
            while True:
                data = self.connection.recv(4096)
                if not data: break
                self.connection.sendall(data)
            self.close_connection = True
            return
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(3):
                self.wfile.write(b"2\r\n%d\n\r\n" % number)
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/hostile":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 200000 + b"\r\n\r\n")
            self.close_connection = True
            return
        body = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        size = int(self.headers["Content-Length"])
        body = b"%d" % sum(len(self.rfile.read(min(65536, size - at))) for at in range(0, size, 65536))
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
'''

edge = urllib.parse.urlparse(os.environ["E2B_SANDBOX_URL"])


def ask(method, path, headers, body=None):
    connection = http.client.HTTPConnection(edge.hostname, edge.port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    return answer.status, said, answer


sandbox = Sandbox.create(timeout=900)
try:
    by_header = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}

    # Nothing listens yet.
    status, said, _ = ask("GET", "/", by_header)
    closed = {"sandboxId": sandbox.sandbox_id, "message": "The sandbox is running but port is not open"}
    assert (status, json.loads(said)) == (502, {**closed, "port": 8000, "code": 502}), said
    status, said, answer = ask("GET", "/", {**by_header, "Accept": "text/html,*/*"})
    assert status == 502 and b"Nothing listens on port 8000" in said, said
    assert answer.headers["Content-Type"].startswith("text/html")

    sandbox.files.write("server.py", SERVER)
    sandbox.commands.run("python3 server.py", background=True)
    ready = "until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.2; done"
    sandbox.commands.run(ready, timeout=120)

    # By header and by host; what is for this server stays here.
    status, said, _ = ask("GET", "/a?b=c", {**by_header, "X-Access-Token": "secret", "Cookie": "d=e", "Te": "trailers"})
    said = json.loads(said)
    assert status == 200 and said["path"] == "/a?b=c" and said["headers"]["cookie"] == "d=e", said
    assert said["headers"]["x-forwarded-proto"] == "http", said
    assert not [name for name in said["headers"] if name.startswith("e2b-") or name == "x-access-token"], said
    host = f"8000-{sandbox.sandbox_id}.example.test"
    status, said, _ = ask("GET", "/", {"Host": host})
    assert (status, json.loads(said)["headers"]["host"]) == (200, host), said

    # Both ways, in one piece and in many.
    status, said, _ = ask("POST", "/", by_header, os.urandom(500_000))
    assert (status, said) == (201, b"500000"), said
    status, said, _ = ask("GET", "/stream", by_header)
    assert (status, said) == (200, b"0\n1\n2\n"), said
    status, said, _ = ask("GET", "/hostile", by_header)
    assert status == 502, (status, said[:100])

    # A WebSocket, as bytes.
    with socket.create_connection((edge.hostname, edge.port), timeout=120) as web:
        key = base64.b64encode(os.urandom(16)).decode()
        web.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += web.recv(4096)
        assert head.startswith(b"HTTP/1.1 101") and b"upgrade: websocket" in head.lower(), head
        for piece in (b"\x81\x85abcd-----", b"x" * 100_000):
            web.sendall(piece)
            back = b""
            while len(back) < len(piece):
                back += web.recv(65536)
            assert back == piece
finally:
    sandbox.kill()

status, said, _ = ask("GET", "/", by_header)
assert status == 502 and "was not found" in json.loads(said)["message"], said
try:
    sandbox.commands.run("true")
    raise AssertionError("a dead sandbox ran a command")
except SandboxNotRunningException:
    pass
assert sandbox.is_running() is False
print("ports: passed")
