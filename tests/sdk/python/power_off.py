"""A guest that powers itself off or halts is not running afterwards. (`ended.py` has one that
restarts.) Exits with 0 if all is as with E2B."""

from e2b import Sandbox

# reboot(2): power off, halt.
for command in [0x4321FEDC, 0xCDEF0123]:
    sandbox = Sandbox.create(timeout=900)
    assert sandbox.is_running()
    waits = sandbox.commands.run("sleep 600", background=True)
    sandbox.commands.run(f"perl -e 'syscall(169, 0xfee1dead, 0x28121969, {command}, 0)'", user="root", background=True)
    # Any error will do, but a command must end with its machine.
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
