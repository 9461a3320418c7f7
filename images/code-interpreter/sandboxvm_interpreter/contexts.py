"""Contexts: a kernel each, which runs one cell at a time and keeps its state between them. Owns the kernels."""

import asyncio
import os
import uuid

from . import lines
from .kernel import Kernel, KernelDied

MAX_CONTEXTS = 32
DEFAULT = "default"
# A cell whose client disconnected has this long to end after its interrupt; then its kernel is replaced.
INTERRUPTED_WITHIN = 15


class NoSuchContext(LookupError):
    """No context has this ID."""


class TooManyContexts(Exception):
    """There are as many contexts as there may be."""


class Contexts:
    """All contexts, by ID."""

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
        """The context that is used when none is named; made when there is none."""
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
        await removed.remove()

    async def stop(self):
        """Ends all kernels."""
        for context in self.all():
            await self.remove(context.id)


class Context:
    """A kernel and what it is doing."""

    def __init__(self, nursery, id, cwd):
        self.nursery = nursery
        self.id = id
        self.cwd = cwd
        self.removed = False
        self.busy = asyncio.Lock()
        self.kernel = None
        # The task that starts the next kernel.
        self.starting = None
        # The task that ends a cell whose client disconnected. The next cell waits for it.
        self.recovery = None
        # What the next cell gets instead of a run: its variables are lost, and no client has heard of it.
        self.notice = None

    @classmethod
    async def start(cls, nursery, id, cwd):
        context = cls(nursery, id, cwd)
        await context.living_kernel()
        return context

    def shown(self):
        return {"id": self.id, "language": "python", "cwd": self.cwd}

    async def remove(self):
        self.removed = True
        await self.stop("the context was removed")

    async def restart(self):
        """Also of a context that is busy: its cell ends with its kernel."""
        await self.stop("the context was restarted")
        async with self.busy:
            await self.recovered()
            self.notice = None
            await self.living_kernel()

    async def stop(self, reason):
        kernel, self.kernel = self.kernel, None
        starting, self.starting = self.starting, None
        if kernel:
            await kernel.stop(reason)
        if starting:
            starting.cancel()
            [started] = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(started, Kernel):
                await started.stop(reason)

    def start_kernel(self):
        self.starting = self.starting or asyncio.ensure_future(Kernel.start(self.nursery, self.cwd))

    async def living_kernel(self):
        """The kernel; a new one where there is none."""
        while self.kernel is None:
            if self.removed:
                raise KernelDied("the context was removed")
            self.start_kernel()
            starting = self.starting
            try:
                kernel = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # A restart gave up the start, not the client its cell.
                if starting.cancelled() and self.starting is not starting:
                    continue
                raise
            finally:
                if starting.done() and self.starting is starting:
                    self.starting = None
            self.kernel = self.kernel or kernel
        return self.kernel

    async def recovered(self):
        if self.recovery:
            await asyncio.shield(self.recovery)

    async def run_silently(self, code):
        """Runs code that no client hears of; raises what it raises."""
        async with self.busy:
            await (await self.living_kernel()).ask(code)

    async def run(self, code, environment):
        """Runs a cell: the lines for the client, to the last. Closed before that, the cell is interrupted."""
        async with self.busy:
            kernel = None
            try:
                await self.recovered()
                if self.notice is None:
                    kernel = await self.living_kernel()
                    if environment:
                        await kernel.ask(in_kernel("set_environment", environment))
                    async for message in kernel.execute(code):
                        if line := lines.of_message(message):
                            yield line
                    if environment:
                        await kernel.ask(in_kernel("reset_environment"))
                else:
                    notice, self.notice = self.notice, None
                    yield lines.error("KernelReplaced", notice)
            except KernelDied as death:
                self.replace(kernel)
                yield lines.error("KernelDied", f"{death}; a new kernel takes its place: variables are lost")
            except (GeneratorExit, asyncio.CancelledError):
                # The client disconnected. This task is being cancelled, so that another one ends the cell.
                self.abandon(kernel, environment)
                raise
            except Exception as error:
                self.abandon(kernel, environment)
                yield lines.error(type(error).__name__, str(error))
            yield lines.end()

    def replace(self, kernel):
        """Starts a kernel in the place of one that died, unless that has happened."""
        if kernel is not None and self.kernel is kernel:
            self.kernel = None
            self.recovery = asyncio.ensure_future(kernel.stop("the kernel ended"))
            if not self.removed:
                self.start_kernel()

    def abandon(self, kernel, environment):
        if kernel is not None and self.kernel is kernel and (kernel.is_busy() or environment):
            self.recovery = asyncio.ensure_future(self.recover(kernel, environment))

    async def recover(self, kernel, environment):
        """Ends what an abandoned cell left: the cell, or its kernel where the cell does not end, and its variables."""
        try:
            if await kernel.interrupt(INTERRUPTED_WITHIN):
                if environment:
                    await asyncio.wait_for(kernel.ask(in_kernel("reset_environment")), INTERRUPTED_WITHIN)
                return
        except Exception:
            # What a kernel that answers wrongly deserves is a new one.
            pass
        if self.kernel is kernel:
            reason = kernel.end or f"the cell before it did not end within {INTERRUPTED_WITHIN} seconds of its client's departure"
            self.notice = f"this cell was not run: {reason}; a new kernel took the place of the old one: variables are lost"
            self.kernel = None
            self.start_kernel()
            await kernel.stop("the cell did not end after its client's departure")


def in_kernel(function, *arguments):
    """A call of a function of that module that leaves no name behind."""
    texts = ", ".join(repr(argument) for argument in arguments)
    return f"__import__('sandboxvm_interpreter.in_kernel', fromlist=['*']).{function}({texts})"
