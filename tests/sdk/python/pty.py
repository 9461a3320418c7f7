"""Terminals: create, input, resize, reconnect, kill. Exits with 0 if all is as with E2B."""

import threading
import time

from e2b import CommandExitException, PtySize, Sandbox, SandboxException

sandbox = Sandbox.create(timeout=900)


class Screen:
    """The output of a terminal, read in a separate thread."""

    def __init__(self, handle):
        self.text, self.error, self.handle = b"", None, handle
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            self.handle.wait(on_pty=self.show)
        except Exception as error:
            self.error = error

    def show(self, data):
        self.text += data

    def shows(self, wanted):
        for _ in range(600):
            if wanted in self.text:
                return
            time.sleep(0.1)
        raise AssertionError(f"{wanted!r} is not in {self.text!r}")


try:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"MARK": "m4rk"}, cwd="/tmp", timeout=0)
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"stty size; pwd; echo $MARK-$TERM; tty\n")
    for wanted in (b"24 80", b"/tmp", b"m4rk-xterm-256color", b"/dev/pts/"):
        screen.shows(wanted)
    assert [process.pid for process in sandbox.commands.list()] == [handle.pid]

    sandbox.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    sandbox.pty.stream_input(handle.pid, [b"stty ", b"size\n"])
    screen.shows(b"50 132")

    try:
        sandbox.commands.send_stdin(handle.pid, "x")
        raise AssertionError("input for a process without a terminal was accepted")
    except SandboxException:
        pass

    again = Screen(sandbox.pty.connect(handle.pid, timeout=0))
    sandbox.pty.send_stdin(handle.pid, b"echo $((6*7))again\n")
    again.shows(b"42again")
    screen.shows(b"42again")

    sandbox.pty.send_stdin(handle.pid, b"exit 5\n")
    again.thread.join(60)
    assert isinstance(again.error, CommandExitException) and again.error.exit_code == 5, again.error

    other = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(other.pid) is True
    try:
        other.wait()
        raise AssertionError("a killed terminal ended with success")
    except CommandExitException as error:
        assert error.exit_code == -1, error
    assert sandbox.pty.kill(other.pid) is False
finally:
    sandbox.kill()
print("pty: passed")
