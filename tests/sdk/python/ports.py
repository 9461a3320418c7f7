"""Servers in a sandbox, reached through the sandbox plane, and the responses for a sandbox that is
gone. Exits with 0 if all is as with E2B."""

import base64
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse

from e2b import Sandbox, SandboxException, SandboxNotRunningException

# Written by hand, because importing http.server takes long if the guest's kernel is interpreted.
SERVER = r'''
import socket, _thread

def answer(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more: return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    path, headers = lines[0].split()[1], dict(line.lower().split(": ", 1) for line in lines[1:])
    if headers.get("upgrade") == "websocket":
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while True:
            data = connection.recv(65536)
            if not data: return
            connection.sendall(data)
    if path == "/stream":
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"2\r\n0\n\r\n", b"2\r\n1\n\r\n", b"2\r\n2\n\r\n", b"0\r\n\r\n"): connection.sendall(piece)
        return
    if path == "/hostile":
        return connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200000 + b"\r\n\r\n")
    if path == "/nonsense":
        return connection.sendall(b"220 mail.example.test ESMTP\r\n")
    size = int(headers.get("content-length", 0))
    got = len(body)
    while got < size: got += len(connection.recv(65536))
    body = ("%d\n" % got + head.decode()).encode()
    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n" % len(body) + body)

def serve(connection):
    try: answer(connection)
    except OSError: pass
    try: connection.shutdown(socket.SHUT_WR)
    except OSError: pass
    connection.close()

listener = socket.create_server(("127.0.0.1", 8000))
while True: _thread.start_new_thread(serve, (listener.accept()[0],))
'''

TLS = r'''
import _thread, socket, ssl

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("pair.pem")

def answer(connection, by):
    head = connection.recv(65536).decode().lower().split("\r\n")
    hosts = [line for line in head if line.startswith(("host: ", "x-forwarded-host: "))]
    body = "\n".join([by, *sorted(hosts)]).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

def serve(listener):
    while True:
        try:
            with listener.accept()[0] as connection: answer(connection, "by HTTP")
        except OSError: pass

_thread.start_new_thread(serve, (socket.create_server(("127.0.0.1", 8000)),))
plain, listener = socket.create_server(("127.0.0.1", 8444)), socket.create_server(("127.0.0.1", 8443))
_thread.start_new_thread(lambda: plain.accept()[0].sendall(b"220 mail.example.test ESMTP\r\n"), ())
while True:
    try:
        with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
            answer(connection, "by TLS")
    except OSError: pass
'''

edge = urllib.parse.urlparse(os.environ["E2B_SANDBOX_URL"])


def ask(method, path, headers, body=None):
    connection = http.client.HTTPConnection(edge.hostname, edge.port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    return answer.status, said, answer


def pair():
    """Creates a key and a self-signed certificate."""
    asked = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    asked += ["-subj", "/CN=guest", "-days", "2", "-keyout", "/dev/stdout", "-out", "/dev/stdout"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def wait_for(headers):
    """Waits until a program listens at the port."""
    for _ in range(600):
        if b"port is not open" not in ask("GET", "/", headers)[1]:
            return
        time.sleep(0.2)
    raise AssertionError(f"no program listens: {headers}")


sandbox = Sandbox.create(timeout=900)
try:
    by_header = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}

    # No program listens yet.
    status, said, _ = ask("GET", "/", by_header)
    closed = {"sandboxId": sandbox.sandbox_id, "message": "The sandbox is running but port is not open"}
    assert (status, json.loads(said)) == (502, {**closed, "port": 8000, "code": 502}), said
    status, said, answer = ask("GET", "/", {**by_header, "Accept": "text/html,*/*"})
    assert status == 502 and b"Nothing listens on port 8000" in said, said
    assert answer.headers["Content-Type"].startswith("text/html")

    sandbox.files.write("server.py", SERVER)
    sandbox.commands.run("exec python3 -S server.py", background=True, timeout=0)
    wait_for(by_header)

    # By header and by host name. Headers for this server or for one hop are not forwarded.
    own = {"X-Access-Token": "secret", "Connection": "X-Mine", "X-Mine": "1", "Cookie": "d=e"}
    status, said, answer = ask("GET", "/a?b=c", {**by_header, **own})
    size, line, *headers = said.decode().splitlines()
    assert (status, size, line) == (201, "0", "GET /a?b=c HTTP/1.1"), said
    assert "cookie: d=e" in headers and "x-forwarded-proto: http" in headers, headers
    stripped = ("e2b-", "x-access-token", "x-mine")
    assert not [header for header in headers if header.lower().startswith(stripped)], headers
    assert "x-hop" not in answer.headers, answer.headers
    host = f"8000-{sandbox.sandbox_id}.example.test"
    status, said, _ = ask("GET", "/", {"Host": host})
    assert status == 201 and f"host: {host}" in said.decode().splitlines(), said

    # In both directions, in one piece and in many.
    status, said, _ = ask("POST", "/", by_header, os.urandom(500_000))
    assert status == 201 and said.startswith(b"500000\n"), said
    status, said, _ = ask("GET", "/stream", by_header)
    assert (status, said) == (200, b"0\n1\n2\n"), said
    for hostile in ("/hostile", "/nonsense"):
        status, said, _ = ask("GET", hostile, by_header)
        assert status == 502 and json.loads(said)["port"] == 8000, (hostile, status, said[:100])

    # A WebSocket, as raw bytes.
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

# This sandbox requires a token for its ports and masks the host name, and one of its ports uses
# TLS.
network = {"allow_public_traffic": False, "mask_request_host": "localhost:${PORT}", "https_ports": [8443, 8444]}
masked = Sandbox.create(timeout=900, network=network)
try:
    told = masked.get_info().network
    assert (told["mask_request_host"], told["https_ports"]) == ("localhost:${PORT}", [8443, 8444]), told
    own = {"E2b-Sandbox-Id": masked.sandbox_id, "E2b-Sandbox-Port": "8000"}
    for token, problem in (({}, "Token header '{}' is missing"), ({"E2b-Traffic-Access-Token": "x"}, "Provided token in header '{}' is invalid")):
        status, said, _ = ask("GET", "/", {**own, **token})
        message = f"Sandbox is secured with traffic access token. {problem.format('e2b-traffic-access-token')}"
        assert (status, json.loads(said)) == (403, {"sandboxId": masked.sandbox_id, "message": message, "code": 403}), said
    own["E2b-Traffic-Access-Token"] = masked.traffic_access_token
    masked.files.write_files([{"path": "tls.py", "data": TLS}, {"path": "pair.pem", "data": pair()}])
    masked.commands.run("exec python3 -S -I tls.py", background=True, timeout=0)
    for port, by in (("8000", "by HTTP"), ("8443", "by TLS")):
        own["E2b-Sandbox-Port"] = port
        wait_for(own)
        host = f"{port}-{masked.sandbox_id}.example.test"
        said = f"{by}\nhost: localhost:{port}\nx-forwarded-host: {host}".encode()
        assert ask("GET", "/", {**own, "Host": host})[:2] == (200, said), (port, said)
    # A server that should speak TLS but does not gives no response.
    own["E2b-Sandbox-Port"] = "8444"
    status, said, _ = ask("GET", "/", own)
    assert status == 502 and "gives no answer" in json.loads(said)["message"], said
finally:
    masked.kill()
for wrong in ({"https_ports": [49983]}, {"mask_request_host": "http://x"}):
    try:
        Sandbox.create(network=wrong)
        raise AssertionError(f"{wrong} was accepted")
    except SandboxException as error:
        assert error.status_code == 400, error

status, said, _ = ask("GET", "/", by_header)
assert status == 502 and "was not found" in json.loads(said)["message"], said
try:
    sandbox.commands.run("true")
    raise AssertionError("a dead sandbox ran a command")
except SandboxNotRunningException:
    pass
assert sandbox.is_running() is False
print("ports: passed")
