"""The service, run on this machine by Debian's Python as the image has it, and E2B's client for it. A raw HTTP client beside
that, for what E2B's client does not send."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from e2b_code_interpreter import Sandbox

PYTHON = "/usr/bin/python3"
SERVICE = Path(__file__).resolve().parent.parent
# Ends a hang; nothing waits for it.
DEADLINE = 120 * int(os.environ.get("SANDBOXVM_TEST_PATIENCE", "1"))


class Client(Sandbox):
    """E2B's client of a sandbox, at an address of ours."""

    url = None

    @property
    def _jupyter_url(self):
        return self.url


class Interpreter:
    """A running service."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="interpreter-")
        environment = {"PATH": "/usr/bin:/bin", "HOME": self.home, "TMPDIR": self.home, "LC_ALL": "C.UTF-8"}
        command = [PYTHON, "-m", "sandboxvm_interpreter", "--port", "0", "--home", self.home]
        self.process = subprocess.Popen(
            command, cwd=SERVICE, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, stdout=subprocess.PIPE, text=True
        )
        for line in self.process.stdout:
            if line.startswith("port "):
                self.port = int(line.split()[1])
                break
        else:
            raise RuntimeError("the service did not start; scripts/test installs what it imports")
        client = Client.create(debug=True, api_key="e2b_" + "0" * 40)
        client.url = f"http://127.0.0.1:{self.port}"
        self.client = client

    def run(self, code, timeout=DEADLINE, **options):
        return self.client.run_code(code, timeout=timeout, **options)

    def ask(self, method, path, body=None):
        """Returns a response's status and text. The body is text, or a value to be written as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body if isinstance(body, (str, bytes)) or body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def lines(self, **request):
        """Runs a cell; returns its lines. Each has to be strict JSON."""
        status, text = self.ask("POST", "/execute", request)
        assert status == 200, text
        return [json.loads(line, parse_constant=refuse_constant) for line in text.split("\n") if line]

    def abandon(self, code, until, before=lambda: None):
        """Sends a cell, waits for this text in its stream, calls `before`, and disconnects."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("POST", "/execute", json.dumps({"code": code}))
        response = connection.getresponse()
        while until not in (line := response.readline().decode()):
            assert line, f"the stream ended without {until!r}"
        before()
        connection.close()
        response.close()

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE)
        self.process.stdout.close()
        shutil.rmtree(self.home, ignore_errors=True)


def refuse_constant(name):
    raise AssertionError(f"{name} is not strict JSON")


class InterpreterTest(unittest.TestCase):
    """Tests of a program, which share a service: to start one is what takes longest."""

    maxDiff = None
    interpreter = None

    @classmethod
    def setUpClass(cls):
        if InterpreterTest.interpreter is None:
            InterpreterTest.interpreter = Interpreter()
            unittest.addModuleCleanup(InterpreterTest.interpreter.stop)
        cls.run_cell = cls.interpreter.run

    def only_result(self, code):
        """The one result of a cell that succeeds and writes nothing."""
        lines = self.interpreter.lines(code=code)
        self.assertEqual(lines[-1], {"type": "end_of_execution"}, lines)
        rest = [line for line in lines if line["type"] not in ("number_of_executions", "end_of_execution")]
        self.assertEqual([line["type"] for line in rest], ["result"], rest)
        return rest[0]


def main():
    sys.dont_write_bytecode = True
    unittest.main(verbosity=2)
