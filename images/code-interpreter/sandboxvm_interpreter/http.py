"""HTTP/1.1 as far as it is needed: requests with a bounded head and body, answers whole or in chunks, one after the other
on a connection. Knows nothing of what is asked."""

import asyncio
import json

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
REASONS = {
    200: "OK", 201: "Created", 204: "No Content", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    413: "Content Too Large", 429: "Too Many Requests", 500: "Internal Server Error", 501: "Not Implemented",
}


class HttpError(Exception):
    """An answer that says what is wrong."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status
        self.message = message


class Request:
    """What was asked for."""

    def __init__(self, method, path, headers, body):
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    def json(self):
        """The body, an object; nothing is an empty one."""
        try:
            value = json.loads(self.body or b"{}")
        except (ValueError, RecursionError) as error:
            raise HttpError(400, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise HttpError(400, "the body is not a JSON object")
        return value


class Connection:
    """A client, and the requests it makes."""

    def __init__(self, reader, writer, answer):
        self.reader = reader
        self.writer = writer
        self.answer = answer
        # Read while we waited for the client to go.
        self.early = b""

    async def serve(self):
        try:
            while await self.serve_one():
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            self.writer.close()

    async def serve_one(self):
        """True when another request may follow."""
        try:
            request = await self.read_request()
        except HttpError as error:
            # Where the next request would begin is not known.
            await self.write_text(error.status, error.message, "close")
            return False
        if request is None:
            return False
        keep = "close" if request.headers.get("connection", "").lower() == "close" else "keep-alive"
        try:
            answer = await self.answer(request)
        except HttpError as error:
            await self.write_text(error.status, error.message, keep)
        except Exception as error:
            await self.write_text(500, f"{type(error).__name__}: {error}", keep)
        else:
            if hasattr(answer, "__aiter__"):
                await self.write_lines(answer, keep)
            else:
                status, value = answer
                body = b"" if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()
                kind = "text/plain; charset=utf-8" if isinstance(value, str) else "application/json"
                await self.write(status, kind, body, keep)
        return keep == "keep-alive"

    async def read_request(self):
        try:
            head = self.early + await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise HttpError(413, "the request's head is too large") from None
        except asyncio.IncompleteReadError as error:
            if error.partial.strip():
                raise
            return None
        self.early = b""
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise HttpError(400, "this is not HTTP/1.1")
        headers = {}
        for line in filter(None, lines):
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                raise HttpError(400, "a header is malformed")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self.read_body(headers)
        return Request(parts[0], parts[1].split("?")[0], headers, body)

    async def read_body(self, headers):
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                raise HttpError(501, "only chunked bodies, and those with a length, are read")
            body = b""
            while size := number(await self.reader.readuntil(b"\r\n"), 16):
                if len(body) + size > MAX_BODY:
                    raise HttpError(413, f"the body is larger than {MAX_BODY} bytes")
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return body
        size = number(headers.get("content-length", "0").encode(), 10)
        if size > MAX_BODY:
            raise HttpError(413, f"the body is larger than {MAX_BODY} bytes")
        return await self.reader.readexactly(size)

    async def write(self, status, kind, body, keep):
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nConnection: {keep}\r\n"
        if status != 204:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)
        await self.writer.drain()

    async def write_text(self, status, text, keep):
        await self.write(status, "text/plain; charset=utf-8", (text + "\n").encode("utf-8", "backslashreplace"), keep)

    async def write_lines(self, lines, keep):
        """Writes each line as it comes. Closes `lines` when the client disconnects."""
        head = f"HTTP/1.1 200 OK\r\nConnection: {keep}\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())
        gone = asyncio.ensure_future(self.reader.read(1))
        try:
            while True:
                following = asyncio.ensure_future(lines.__anext__())
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and gone.exception() is None and gone.result():
                    # The next request already; whether it goes is seen when that is read.
                    self.early += gone.result()
                    gone = asyncio.get_running_loop().create_future()
                elif gone.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    raise ConnectionResetError("the client went")
                try:
                    line = await following
                except StopAsyncIteration:
                    break
                self.writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                await self.writer.drain()
            self.writer.write(b"0\r\n\r\n")
            await self.writer.drain()
        finally:
            if not gone.done():
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
            await lines.aclose()


def number(text, base):
    try:
        value = int(text.split(b";")[0].strip(), base)
    except ValueError:
        value = -1
    if value < 0:
        raise HttpError(400, "a length is malformed")
    return value


async def listen(answer, host, port):
    """A server that gives each request to `answer`: it returns a status and a value, or an iterator of lines in bytes."""

    async def connected(reader, writer):
        await Connection(reader, writer, answer).serve()

    return await asyncio.start_server(connected, host, port, limit=MAX_HEAD)
