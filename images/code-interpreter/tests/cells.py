"""Cells that are cut off, that end their kernel, and that hold text which UTF-8 cannot: each stream ends, and the next cell is
answered."""

import json
import os
import signal
import time
import unittest

from e2b_code_interpreter import Sandbox  # noqa: F401  (the client that the cells are run with)

from interpreter import Interpreter, InterpreterTest, main

END = {"type": "end_of_execution"}
# Of the service: what a cell has after its interrupt.
INTERRUPTED_WITHIN = 15
# The kernel writes output in a thread, which a busy machine may not run before the cell holds Python's
# lock for good. So the cell is stubborn only once its output has been read.
BEGUN = """
import os, time
print('begun', flush=True)
while not os.path.exists('output-is-read'):
    time.sleep(0.01)
os.remove('output-is-read')
"""
IGNORES_INTERRUPTS = """
while True:
    try:
        while True: sum(range(1000))
    except KeyboardInterrupt:
        pass
"""
HOLDS_THE_INTERPRETER = "sum(range(10**12))"


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return " Z " not in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False


def processor_time(pid):
    """Returns the seconds of processor time that this process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_processor_time(pid, seconds):
    """Waits until this process has used that much more processor time."""
    until = processor_time(pid) + seconds
    while processor_time(pid) < until:
        time.sleep(0.02)


class CutOffCells(InterpreterTest):
    def make_stubborn(self, kernel):
        with open(os.path.join(os.readlink(f"/proc/{kernel}/cwd"), "output-is-read"), "w"):
            pass
        wait_for_processor_time(kernel, 0.5)

    def test_a_cell_that_ignores_its_interrupt_loses_its_kernel(self):
        for stubborn in [IGNORES_INTERRUPTS, HOLDS_THE_INTERPRETER]:
            with self.subTest(stubborn):
                kernel = int(self.run_cell("import os\nkept = 1\nos.getpid()").text)
                # Directly after its output, the cell is not stubborn yet: an interrupt ends it there.
                self.interpreter.abandon(BEGUN + stubborn, "begun", lambda: self.make_stubborn(kernel))
                began = time.monotonic()
                replaced = self.run_cell("kept")
                self.assertEqual(replaced.error.name, "KernelReplaced", replaced)
                self.assertIn("variables are lost", replaced.error.value)
                patience = int(os.environ.get("SANDBOXVM_TEST_PATIENCE", "1"))
                self.assertLess(time.monotonic() - began, INTERRUPTED_WITHIN + 5 * patience)
                self.assertEqual(self.run_cell("kept").error.name, "NameError")
                self.assertEqual(self.run_cell("6 * 7").text, "42")

    def test_a_cell_that_accepts_its_interrupt_keeps_its_kernel(self):
        self.run_cell("kept = 'here'")
        self.interpreter.abandon("import time\nprint('begun', flush=True)\ntime.sleep(3600)", "begun")
        self.assertEqual(self.run_cell("kept").text, "here")

    def test_variables_of_a_cell_that_was_cut_off_do_not_outlive_it(self):
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.interpreter.port, timeout=60)
        cell = "import os, time\nprint(os.environ['ONLY_THERE'], flush=True)\ntime.sleep(3600)"
        connection.request("POST", "/execute", json.dumps({"code": cell, "env_vars": {"ONLY_THERE": "begun"}}))
        response = connection.getresponse()
        while b"begun" not in response.readline():
            pass
        connection.close()
        response.close()
        self.assertIsNone(self.run_cell("import os\nos.environ.get('ONLY_THERE')").text)

    def test_a_cell_that_ends_its_kernel_is_answered(self):
        ended = self.run_cell("import os\nos._exit(3)")
        self.assertEqual(ended.error.name, "KernelDied", ended)
        self.assertEqual(self.run_cell("1 + 1").text, "2")
        killed = self.run_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
        self.assertEqual(killed.error.name, "KernelDied", killed)
        self.assertEqual(self.run_cell("1 + 1").text, "2")

    def test_a_kernel_that_ended_between_cells_is_noticed_by_the_next(self):
        pid = int(self.run_cell("import os\nos.getpid()").text)
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.run_cell("1 + 1").error.name, "KernelDied")
        self.assertEqual(self.run_cell("1 + 1").text, "2")

    def test_kernels_are_ended_before_the_service_when_memory_is_short(self):
        self.assertEqual(self.run_cell("open('/proc/self/oom_score_adj').read()").text, "1000\\n")

    def test_a_restart_ends_a_stubborn_cell_and_what_it_started(self):
        context = self.interpreter.client.create_code_context()
        child = int(self.run_cell("import subprocess\nsubprocess.Popen(['sleep', '3600']).pid", context=context).text)
        self.interpreter.client.restart_code_context(context)
        self.assertEqual(self.run_cell("subprocess", context=context).error.name, "NameError")
        while is_running(child):
            time.sleep(0.05)
        self.interpreter.client.remove_code_context(context)


class Surrogates(InterpreterTest):
    """Lone surrogates: UTF-8 has no bytes for them."""

    def test_an_exception_of_a_lone_surrogate_ends_its_stream(self):
        failed = self.run_cell("raise ValueError('\\ud800')")
        self.assertEqual((failed.error.name, failed.error.value), ("ValueError", "\\ud800"))

    def test_output_of_a_lone_surrogate_costs_nothing_but_itself(self):
        printed = self.run_cell("print('before'); print('\\ud83c'); print('after \\U0001f600')")
        self.assertEqual("".join(printed.logs.stdout), "before\n\\ud83c\nafter \U0001f600\n")
        self.assertEqual(printed.logs.stderr, [])
        shown = self.run_cell("'\\ud800'")
        self.assertEqual(shown.text, "\\ud800")

    def test_a_request_of_lone_surrogates_is_run(self):
        lines = self.interpreter.lines(code="print(len('\ud800'))")
        self.assertEqual([line["text"] for line in lines if line["type"] == "stdout"], ["1\n"], lines)
        self.assertEqual(lines[-1], END)
        lines = self.interpreter.lines(code="import os; print(os.environ['A'])", env_vars={"A": "a\ud800"})
        self.assertEqual([line["text"] for line in lines if line["type"] == "stdout"], ["a\\ud800\n"], lines)
        self.assertEqual(lines[-1], END)


class Requests(InterpreterTest):
    def test_malformed_requests_are_refused_with_400(self):
        deep = "[" * 100_000 + "]" * 100_000
        for path, body in [
            ("/contexts", {"cwd": "a\0b"}),
            ("/contexts", {"cwd": "/\ud800"}),
            ("/contexts", {"cwd": "/nonexistent"}),
            ("/contexts", {"cwd": ["/tmp"]}),
            ("/contexts", {"cwd": "/" + "x" * 100_000}),
            ("/contexts", {"language": ["python"]}),
            ("/execute", {"code": "1", "context_id": ["default"]}),
            ("/execute", {"code": "1", "context_id": {"a": 1}}),
            ("/execute", {"code": "1", "context_id": 7}),
            ("/execute", {"code": 1}),
            ("/execute", {"code": "1", "env_vars": []}),
            ("/execute", {"code": "1", "env_vars": {"A": 1}}),
            ("/execute", {"code": "1", "env_vars": {"A": "\0"}}),
            ("/execute", deep),
            ("/execute", b"\xff"),
            ("/execute", "1" * 10_000),
            ("/execute", "[]"),
        ]:
            with self.subTest(path=path, body=repr(body)[:60]):
                status, text = self.interpreter.ask("POST", path, body)
                self.assertEqual(status, 400, text)

    def test_an_unknown_context_is_refused_with_404(self):
        for context in ["x", "\ud800", "../default"]:
            self.assertEqual(self.interpreter.ask("POST", "/execute", {"code": "1", "context_id": context})[0], 404)


if __name__ == "__main__":
    main()
