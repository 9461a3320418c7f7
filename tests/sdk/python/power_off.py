"""A guest that powers itself off, halts or restarts: its sandbox is not running. Exit status 0 when all is as E2B has it."""

from e2b import Sandbox

# reboot(2): power off, halt, restart.
for command in [0x4321FEDC, 0xCDEF0123, 0x01234567]:
    sandbox = Sandbox.create(timeout=900)
    assert sandbox.is_running()
    waits = sandbox.commands.run("sleep 600", background=True)
    sandbox.commands.run(f"perl -e 'syscall(169, 0xfee1dead, 0x28121969, {command}, 0)'", user="root", background=True)
    # Its end, whatever the error is: a command that is gone with its machine does not wait for ever.
    try:
        waits.wait()
        raise AssertionError("a command outlived its machine")
    except AssertionError:
        raise
    except Exception as error:
        print(f"{command:#x}: {error!r}")
    assert not sandbox.is_running()
    assert sandbox.sandbox_id not in [one.sandbox_id for one in Sandbox.list().next_items()]
    sandbox.kill()
