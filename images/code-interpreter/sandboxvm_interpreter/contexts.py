"""Contexts: a kernel each, which runs one cell at a time and keeps its state between them. Owns the kernels' processes."""

import asyncio
import json
import os
import select
import shutil
import signal
import tempfile
import uuid

import zmq.asyncio
from jupyter_client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

from . import lines

MAX_CONTEXTS = 32
DEFAULT = "default"
# A kernel that starts or is interrupted, on a slow machine.
READY_WITHIN = 600
INTERRUPTED_WITHIN = 10
# What a kernel said before its reply arrives with it, on another socket.
LAST_WORDS_WITHIN = 5
LOOK_EVERY = 2


class NoSuchContext(LookupError):
    """None has this ID."""


class TooManyContexts(Exception):
    """There are as many as there may be."""


class KernelDied(Exception):
    """Its process ended."""


class Contexts:
    """All there are."""

    def __init__(self, home, nursery):
        self.home = home
        self.nursery = nursery
        self.contexts = {}
        self.making = asyncio.Lock()

    def all(self):
        return list(self.contexts.values())

    def find(self, context):
        if context not in self.contexts:
            raise NoSuchContext(context)
        return self.contexts[context]

    async def default(self):
        """The one that is used when none is named; made when there is none."""
        async with self.making:
            if DEFAULT not in self.contexts:
                self.contexts[DEFAULT] = await Context.start(self.nursery, DEFAULT, self.home)
            return self.contexts[DEFAULT]

    async def create(self, cwd):
        cwd = cwd or self.home
        os.scandir(cwd).close()
        async with self.making:
            if len(self.contexts) >= MAX_CONTEXTS:
                raise TooManyContexts
            context = await Context.start(self.nursery, str(uuid.uuid4()), cwd)
            self.contexts[context.id] = context
            return context

    async def remove(self, context):
        removed = self.find(context)
        del self.contexts[context]
        await removed.stop()


class Context:
    """A kernel and what it is doing."""

    def __init__(self, nursery, id, cwd):
        self.nursery = nursery
        self.id = id
        self.cwd = cwd
        self.busy = asyncio.Lock()
        self.kernel = None

    @classmethod
    async def start(cls, nursery, id, cwd):
        context = cls(nursery, id, cwd)
        context.kernel = await Kernel.start(nursery, cwd)
        return context

    def shown(self):
        return {"id": self.id, "language": "python", "cwd": self.cwd}

    async def stop(self):
        kernel, self.kernel = self.kernel, None
        if kernel:
            await kernel.stop()

    async def restart(self):
        """Also of one that is busy: what runs ends with its kernel."""
        await self.stop()
        async with self.busy:
            if self.kernel is None:
                self.kernel = await Kernel.start(self.nursery, self.cwd)

    async def run_silently(self, code):
        """Counts and says nothing; raises what it raises."""
        async with self.busy:
            await self.kernel.ask(code)

    async def run(self, code, environment):
        """Runs a cell: lines for the client, to the last. Closed before that, the cell is interrupted."""
        async with self.busy:
            kernel = self.kernel
            try:
                if kernel is None:
                    raise KernelDied
                if environment:
                    await kernel.ask(in_kernel("push_environment", environment))
                async for message in kernel.execute(code):
                    if line := lines.of_message(message):
                        yield line
                if environment:
                    await kernel.ask(in_kernel("pop_environment"))
            except KernelDied:
                yield lines.error("KernelDied", "the kernel ended, and a new one takes its place: variables are lost")
                if self.kernel is kernel and kernel is not None:
                    await self.stop()
                    self.kernel = await Kernel.start(self.nursery, self.cwd)
            except (GeneratorExit, asyncio.CancelledError):
                # The client went. The next cell waits for this.
                if self.kernel is kernel and not await kernel.interrupt():
                    await self.stop()
                    self.kernel = await Kernel.start(self.nursery, self.cwd)
                raise
            yield lines.end()


def in_kernel(function, *arguments):
    """A call of a function of that module that leaves no name behind."""
    texts = ", ".join(repr(argument) for argument in arguments)
    return f"__import__('sandboxvm_interpreter.in_kernel', fromlist=['*']).{function}({texts})"


class Nursery:
    """Asks the nursery's process for kernels, one at a time."""

    def __init__(self, requests):
        requests.setblocking(False)
        self.requests = requests
        self.asking = asyncio.Lock()

    async def kernel(self, connection, cwd):
        """A process, by its PID and a descriptor that is its own."""
        loop = asyncio.get_running_loop()
        async with self.asking:
            await loop.sock_sendall(self.requests, json.dumps({"connection": connection, "cwd": cwd}).encode())
            answer = json.loads(await self.answer())
            if "error" in answer:
                raise OSError(0, answer["error"])
            return os.pidfd_open(answer["pid"])

    async def answer(self):
        answer = await asyncio.get_running_loop().sock_recv(self.requests, 64 * 1024)
        if not answer:
            raise RuntimeError("the nursery ended")
        return answer


class Kernel:
    """A kernel's process, and the sockets to it."""

    def __init__(self, context, process, directory, client):
        self.context = context
        self.process = process
        self.directory = directory
        self.client = client
        self.cell = None
        self.said = asyncio.Queue()
        self.replied = None
        self.pumps = [asyncio.ensure_future(self.pump_said()), asyncio.ensure_future(self.pump_replies())]

    @classmethod
    async def start(cls, nursery, cwd):
        # Unix sockets: nobody else's, and half the way through the guest's kernel.
        directory = tempfile.mkdtemp(prefix="kernel-")
        connection = f"{directory}/connection.json"
        key = os.urandom(32).hex().encode()
        write_connection_file(connection, transport="ipc", ip=f"{directory}/socket", key=key)
        process = await nursery.kernel(connection, cwd)
        context = zmq.asyncio.Context()
        # What a cell says is never dropped on our side.
        context.rcvhwm = 0
        client = AsyncKernelClient(context=context)
        client.load_connection_file(connection)
        # Without heartbeat: whether it lives is asked of its process.
        client.start_channels(stdin=False, hb=False)
        kernel = cls(context, process, directory, client)
        try:
            await asyncio.wait_for(kernel.ready(), READY_WITHIN)
        except BaseException:
            await kernel.stop()
            raise
        return kernel

    async def ready(self):
        """When it answers, and its output arrives: what it said before we listened is lost."""
        await self.ask("None")
        while True:
            try:
                async for _ in self.execute("", silent=True, store_history=False):
                    pass
                return
            except KernelDied:
                if not self.is_alive():
                    raise

    def is_alive(self):
        return not select.select([self.process], [], [], 0)[0]

    async def stop(self):
        for pump in self.pumps:
            pump.cancel()
        await asyncio.gather(*self.pumps, return_exceptions=True)
        try:
            signal.pidfd_send_signal(self.process, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.client.stop_channels()
        self.context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)
        # Whoever waits for it looks whether it lives.
        self.said.put_nowait(None)

    async def pump_said(self):
        while True:
            message = await self.client.get_iopub_msg(timeout=None)
            # Of threads of a cell before, nobody listens any more.
            if message["parent_header"].get("msg_id") == self.cell:
                self.said.put_nowait(message)

    async def pump_replies(self):
        while True:
            message = await self.client.get_shell_msg(timeout=None)
            if message["parent_header"].get("msg_id") == self.cell:
                self.replied = message
                self.said.put_nowait(None)

    def begin(self, code, **options):
        self.said = asyncio.Queue()
        self.replied = None
        # One at a time: there is nothing behind it to be given up when it fails.
        self.cell = self.client.execute(code, allow_stdin=False, stop_on_error=False, **options)

    async def execute(self, code, **options):
        """The messages about a cell, until it is done."""
        self.begin(code, **options)
        idle = False
        while not (idle and self.replied):
            message = await self.next()
            if message is None:
                continue
            if message["header"]["msg_type"] == "status":
                idle = idle or message["content"]["execution_state"] == "idle"
            else:
                yield message

    async def ask(self, code):
        """Runs what nobody is told of."""
        self.begin(code, silent=True, store_history=False)
        while not self.replied:
            await self.next()
        content = self.replied["content"]
        if content["status"] != "ok":
            raise RuntimeError(f"{content.get('ename')}: {content.get('evalue')}")

    async def next(self):
        """The next message, or None when there is something to look at."""
        # After its reply a kernel says what it has to say at once.
        within = LAST_WORDS_WITHIN if self.replied else LOOK_EVERY
        try:
            return await asyncio.wait_for(self.said.get(), within)
        except asyncio.TimeoutError:
            if self.replied or not self.is_alive():
                raise KernelDied from None
            return None

    async def interrupt(self):
        """False when it does not stop what it does."""
        signal.pidfd_send_signal(self.process, signal.SIGINT)
        try:
            async with asyncio.timeout(INTERRUPTED_WITHIN):
                while not self.replied:
                    await self.next()
        except (TimeoutError, KernelDied):
            return False
        return True
