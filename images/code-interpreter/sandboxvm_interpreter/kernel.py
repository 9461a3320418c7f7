"""A kernel: its process, forked off by the nursery, and the sockets to it. Runs one cell at a time; knows no contexts."""

import asyncio
import json
import os
import select
import shutil
import signal
import tempfile

import zmq.asyncio
from jupyter_client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

# A kernel that starts, on a slow machine.
READY_WITHIN = 600
# What a kernel said before its reply arrives with it, on another socket.
LAST_WORDS_WITHIN = 5
# A kernel ignores an interrupt between two messages, and a cell may catch one.
INTERRUPT_EVERY = 3


class KernelDied(Exception):
    """The kernel's process ended, or was ended; the text says why."""


class Nursery:
    """Asks the nursery's process for kernels, one at a time."""

    def __init__(self, requests):
        requests.setblocking(False)
        self.requests = requests
        self.asking = asyncio.Lock()

    async def kernel(self, connection, cwd):
        """Forks a kernel off; returns its PID and a descriptor of its process."""
        # Not cut off halfway: the next request would read this one's answer, and a process would be left over.
        asked = asyncio.ensure_future(self.ask({"connection": connection, "cwd": cwd}))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(end_unwanted)
            raise

    async def ask(self, wanted):
        loop = asyncio.get_running_loop()
        async with self.asking:
            await loop.sock_sendall(self.requests, json.dumps(wanted).encode())
            answer = await loop.sock_recv(self.requests, 64 * 1024)
            if not answer:
                raise RuntimeError("the process that kernels are forked off has ended")
            answer = json.loads(answer)
            if "error" in answer:
                raise OSError(answer["errno"], answer["error"])
            try:
                return answer["pid"], os.pidfd_open(answer["pid"])
            except ProcessLookupError:
                raise KernelDied("the kernel ended as it started") from None


def end_unwanted(asked):
    if not asked.cancelled() and asked.exception() is None:
        _, process = asked.result()
        send_signal(process, signal.SIGKILL)
        os.close(process)


def send_signal(process, number):
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        pass


def processes_ended_for_memory():
    """How many processes this machine has ended because it had no memory left."""
    try:
        with open("/proc/vmstat") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except OSError:
        return 0


class Kernel:
    """A kernel's process, and the sockets to it."""

    def __init__(self, pid, process, directory, context, client):
        self.pid = pid
        self.process = process
        self.directory = directory
        self.context = context
        self.client = client
        self.cell = None
        self.said = asyncio.Queue()
        self.replied = None
        # Why it ended; None while it runs.
        self.end = None
        self.ended_for_memory = processes_ended_for_memory()
        asyncio.get_running_loop().add_reader(process, self.on_end)
        self.pumps = [asyncio.ensure_future(self.pump_said()), asyncio.ensure_future(self.pump_replies())]

    @classmethod
    async def start(cls, nursery, cwd):
        # Unix sockets: only this user reaches them, and they take half the guest kernel's work of TCP.
        directory = tempfile.mkdtemp(prefix="kernel-")
        try:
            connection = f"{directory}/connection.json"
            key = os.urandom(32).hex().encode()
            write_connection_file(connection, transport="ipc", ip=f"{directory}/socket", key=key)
            pid, process = await nursery.kernel(connection, cwd)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        context = zmq.asyncio.Context()
        # What a cell says is never dropped on our side.
        context.rcvhwm = 0
        client = AsyncKernelClient(context=context)
        client.load_connection_file(connection)
        # Without heartbeat: the process itself says whether it lives.
        client.start_channels(stdin=False, hb=False)
        kernel = cls(pid, process, directory, context, client)
        try:
            await asyncio.wait_for(kernel.ready(), READY_WITHIN)
        except BaseException:
            await kernel.stop("the kernel did not start")
            raise
        return kernel

    async def ready(self):
        """Returns when it answers and its output arrives: output from before the subscription is lost."""
        await self.ask("None")
        while True:
            try:
                async for _ in self.execute("", silent=True, store_history=False):
                    pass
                return
            except KernelDied:
                if self.end:
                    raise

    def is_busy(self):
        return self.cell is not None and not self.replied

    def on_end(self):
        """The process ended."""
        asyncio.get_running_loop().remove_reader(self.process)
        if self.end is None:
            out_of_memory = processes_ended_for_memory() > self.ended_for_memory
            self.end = "the sandbox ran out of memory, and the kernel was ended" if out_of_memory else "the kernel ended"
        # Wakes what waits for a message.
        self.said.put_nowait(None)

    async def stop(self, reason):
        """Ends the process, and what it started. A task that waits for a message gets KernelDied with the reason."""
        if self.directory is None:
            return
        directory, self.directory = self.directory, None
        self.end = self.end or reason
        # Its group has its PID, which another process can get once this one has ended.
        if not select.select([self.process], [], [], 0)[0]:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            send_signal(self.process, signal.SIGKILL)
        asyncio.get_running_loop().remove_reader(self.process)
        os.close(self.process)
        self.said.put_nowait(None)
        for pump in self.pumps:
            pump.cancel()
        await asyncio.gather(*self.pumps, return_exceptions=True)
        self.client.stop_channels()
        self.context.destroy(linger=0)
        shutil.rmtree(directory, ignore_errors=True)

    async def pump_said(self):
        while True:
            message = await self.client.get_iopub_msg(timeout=None)
            # Output of threads that a cell before left behind has no reader.
            if message["parent_header"].get("msg_id") == self.cell:
                self.said.put_nowait(message)

    async def pump_replies(self):
        while True:
            message = await self.client.get_shell_msg(timeout=None)
            if message["parent_header"].get("msg_id") == self.cell:
                self.replied = message
                self.said.put_nowait(None)

    def begin(self, code, **options):
        if self.end:
            raise KernelDied(self.end)
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
        """Runs code that no client hears of."""
        self.begin(code, silent=True, store_history=False)
        while not self.replied:
            await self.next()
        content = self.replied["content"]
        if content["status"] != "ok":
            raise RuntimeError(f"{content.get('ename')}: {content.get('evalue')}")

    async def next(self):
        """The next message, or None when there is something to look at."""
        # Behind its reply a kernel sends what output is left, without further work.
        within = LAST_WORDS_WITHIN if self.replied else None
        try:
            message = await asyncio.wait_for(self.said.get(), within)
        except asyncio.TimeoutError:
            raise KernelDied("the kernel's last output did not arrive") from None
        if message is None and self.end and self.said.empty():
            raise KernelDied(self.end)
        return message

    async def interrupt(self, within):
        """Interrupts the cell; returns whether it ended in that time. Not to be called from a task that is being
        cancelled: Python 3.11.2 answers a time-out in one with CancelledError."""
        deadline = asyncio.get_running_loop().time() + within
        while self.is_busy() and not self.end:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            send_signal(self.process, signal.SIGINT)
            await self.replied_within(min(left, INTERRUPT_EVERY))
        return not self.end

    async def replied_within(self, seconds):
        async def reply():
            while self.is_busy() and not self.end:
                # A None for a reply or the end; anything else no client hears of.
                await self.said.get()

        try:
            await asyncio.wait_for(reply(), seconds)
        except asyncio.TimeoutError:
            pass
