"""Commands and files of a sandbox that ends meanwhile fail with the client's exception and its
text. Exits with 0 if all is as with E2B."""

import asyncio
import os
import threading

from e2b import AsyncSandbox, Sandbox, SandboxNotRunningException
from expect import raises

OVER = "The sandbox was killed or reached its end of life while the request was in flight."


def soon(work):
    """Runs `work` a little later, when the current request has begun."""
    threading.Timer(2, work).start()


# Killed by its client, by expiry, and from inside.
sandbox = Sandbox.create(timeout=900)
try:
    running = sandbox.commands.run("echo begun; sleep 600", background=True)
    watch = sandbox.files.watch_dir("")
    sandbox.kill()
    assert OVER in str(raises(SandboxNotRunningException, running.wait))
    raises(SandboxNotRunningException, watch.get_new_events)
    raises(SandboxNotRunningException, lambda: sandbox.commands.run("true"))
    raises(SandboxNotRunningException, lambda: sandbox.files.read("x"))
    raises(SandboxNotRunningException, lambda: sandbox.files.write("x", "y"))
finally:
    sandbox.kill()

sandbox = Sandbox.create(timeout=900)
try:
    soon(lambda: sandbox.set_timeout(0))
    assert OVER in str(raises(SandboxNotRunningException, lambda: sandbox.commands.run("sleep 600", timeout=0)))

    # A pause also ends the requests, until the sandbox is resumed.
    sandbox = Sandbox.create(timeout=900)
    running = sandbox.commands.run("sleep 600", background=True, timeout=0)
    sandbox.pause()
    assert OVER in str(raises(SandboxNotRunningException, running.wait))
    sandbox.connect()
    assert [process.pid for process in sandbox.commands.list()] == [running.pid]

    # A machine that ends by itself.
    restart = "perl -e 'syscall(169, 0xfee1dead, 672274793, 0x01234567)'; sleep 600"
    assert OVER in str(raises(SandboxNotRunningException, lambda: sandbox.commands.run(restart, user="root", timeout=0)))
    assert sandbox.is_running() is False
finally:
    sandbox.kill()


async def asynchronous():
    sandbox, over = await AsyncSandbox.create(timeout=900), asyncio.Event()
    try:
        running = await sandbox.commands.run("sleep 600", background=True)

        async def endless():
            while not over.is_set():
                yield os.urandom(100_000)
                await asyncio.sleep(0.2)

        upload = asyncio.create_task(sandbox.files.write("endless", endless()))
        await asyncio.sleep(2)
        await sandbox.kill()
        for ended in (running.wait(), upload):
            try:
                await ended
            except SandboxNotRunningException as error:
                assert "sandbox was killed or reached its" in str(error), error
            else:
                raise AssertionError("the stream did not end")
    finally:
        over.set()
        await sandbox.kill()


asyncio.run(asynchronous())
print("ended: passed", flush=True)
# Ends without the interpreter's own cleanup, which threads of the client's HTTP library that hold
# the upload would abort.
os._exit(0)
