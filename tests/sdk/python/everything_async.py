"""The asynchronous client: every kind of method once. Exits with 0 if all is as with E2B."""

import asyncio

from e2b import AsyncSandbox, CommandExitException, FileNotFoundException, SandboxNotFoundException
from expect import raises_async


async def use(sandbox):
    # Several requests at the same time on one connection.
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {n}") for n in range(3)))
    assert [result.stdout for result in results] == ["0\n", "1\n", "2\n"], results
    error = await raises_async(CommandExitException, sandbox.commands.run("echo no >&2; exit 3"))
    assert (error.exit_code, error.stderr) == (3, "no\n"), error

    seen = []
    command = await sandbox.commands.run("cat", background=True, stdin=True, on_stdout=seen.append)
    await sandbox.commands.send_stdin(command.pid, "fed\n")
    await sandbox.commands.close_stdin(command.pid)
    assert (await command.wait()).stdout == "fed\n" and seen == ["fed\n"], seen

    files = sandbox.files
    await files.write("a/b.txt", "text")
    assert await files.read("a/b.txt") == "text" and await files.exists("a") and not await files.exists("c")
    assert [entry.name for entry in await files.list("a")] == ["b.txt"]
    assert (await files.rename("a/b.txt", "a/c.txt")).path == "/home/user/a/c.txt"
    await raises_async(FileNotFoundException, files.read("a/b.txt"))
    events = []
    watch = await files.watch_dir("a", on_event=events.append)
    await files.write("a/new.txt", "x")
    for _ in range(100):
        if events:
            break
        await asyncio.sleep(0.1)
    assert any(event.name == "new.txt" for event in events), events
    await watch.stop()
    await files.remove("a")

    shown = []
    terminal = await sandbox.pty.create(size=__import__("e2b").PtySize(rows=24, cols=80), on_data=lambda data: shown.append(bytes(data)))
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; exit 4\n")
    assert (await raises_async(CommandExitException, terminal.wait())).exit_code == 4
    assert b"24 80" in b"".join(shown), shown


async def main():
    sandbox = await AsyncSandbox.create(timeout=900, metadata={"a": "async"})
    made = [sandbox]
    try:
        assert await sandbox.is_running()
        await use(sandbox)
        [copy] = await sandbox.fork(timeout=900)
        made.append(copy)
        assert (await copy.get_info()).metadata == {"a": "async"}
        assert await copy.pause() and not await copy.is_running()
        copy = await AsyncSandbox.connect(copy.sandbox_id, timeout=900)
        assert await copy.is_running()
        snapshot = await copy.create_snapshot()
        assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
        pages = AsyncSandbox.list()
        assert {one.sandbox_id for one in await pages.next_items()} == {one.sandbox_id for one in made}
        assert await sandbox.get_metrics()
        await sandbox.set_timeout(600)
    finally:
        for one in made:
            assert await one.kill()
    await raises_async(SandboxNotFoundException, sandbox.get_info())


asyncio.run(main())
