"""Commands: foreground, background, input, reconnect, kill. Exits with 0 if all is as with E2B."""

from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    TimeoutException,
)
from expect import raises


sandbox = Sandbox.create(timeout=900, envs={"OF_SANDBOX": "s", "BOTH": "s"})
try:
    commands = sandbox.commands

    # Output, environment, user and directory.
    seen = []
    result = commands.run(
        'echo out; echo err >&2; echo "$OF_SANDBOX $BOTH $OF_COMMAND"; whoami; pwd',
        envs={"BOTH": "c", "OF_COMMAND": "c"},
        on_stdout=seen.append,
    )
    assert result.exit_code == 0 and result.error is None, result
    assert result.stdout == "out\ns c c\nuser\n/home/user\n", result
    assert result.stderr == "err\n", result
    assert "".join(seen) == result.stdout, seen
    assert commands.run("whoami; pwd", user="root", cwd="/etc").stdout == "root\n/etc\n"
    commands.run("mkdir -p below/it")
    assert commands.run("pwd", cwd="below/it").stdout == "/home/user/below/it\n"
    assert commands.run("pwd", cwd="~/below").stdout == "/home/user/below\n"

    # Failures.
    failed = raises(CommandExitException, lambda: commands.run("echo x; exit 3"))
    assert (failed.exit_code, failed.stdout, failed.error) == (3, "x\n", "exit status 3"), failed
    unknown = raises(AuthenticationException, lambda: commands.run("true", user="nobody-of-that-name"))
    assert "invalid username: 'nobody-of-that-name'" in str(unknown), unknown
    missing = raises(InvalidArgumentException, lambda: commands.run("true", cwd="/no/such/directory"))
    assert "cwd '/no/such/directory' does not exist" in str(missing), missing
    late = raises(TimeoutException, lambda: commands.run("sleep 600", timeout=4))
    assert "timeout" in str(late), late

    # Much output, in pieces that split characters.
    much = commands.run("yes 'über' | head -c 1500000")
    assert len(much.stdout.encode()) == 1500000 and "\ufffd" not in much.stdout[:-1]

    # In the background: list, send input, disconnect, reconnect.
    cat = commands.run("cat; echo over", background=True, stdin=True)
    listed = {process.pid: process for process in commands.list()}
    assert listed[cat.pid].cmd == "/bin/bash" and listed[cat.pid].args == ["-l", "-c", "cat; echo over"], listed
    assert all("sleep 600" not in process.args for process in listed.values()), "the command did not end at its timeout"
    commands.send_stdin(cat.pid, "one\n")
    cat.disconnect()
    commands.send_stdin(cat.pid, b"two\n")
    commands.stream_input(cat.pid, ["thr", "ee\n", b"four\n"])
    again = commands.connect(cat.pid)
    commands.close_stdin(cat.pid)
    assert again.wait().stdout.endswith("two\nthree\nfour\nover\n")
    raises(SandboxException, lambda: commands.send_stdin(cat.pid, "more"))

    # Sends input and its end on the stream that started the command, more than fits without being
    # read.
    count = commands.run("wc -c; echo over", background=True, stdin=True)
    count.send_stdin(b"x" * 400_000)
    count.close_stdin()
    assert count.wait().stdout == "400000\nover\n"

    # Kill.
    sleep = commands.run("sleep 600", background=True)
    assert sleep.kill() is True
    killed = raises(CommandExitException, sleep.wait)
    assert (killed.exit_code, killed.error) == (-1, "signal: killed"), killed
    assert commands.kill(sleep.pid) is False and commands.kill(999999) is False
    raises(NotFoundException, lambda: commands.connect(999999))
    raises(NotFoundException, lambda: commands.send_stdin(999999, "x"))
    assert commands.list() == [], commands.list()

    # A pause ends streams but not processes: the command accepts input again after the resume.
    cat = commands.run("cat; echo over", background=True, stdin=True)
    commands.send_stdin(cat.pid, "before\n")
    assert sandbox.pause()
    sandbox.connect()
    commands.send_stdin(cat.pid, "after\n")
    again = commands.connect(cat.pid)
    commands.close_stdin(cat.pid)
    assert again.wait().stdout.endswith("after\nover\n")
finally:
    sandbox.kill()
print("commands: passed")
