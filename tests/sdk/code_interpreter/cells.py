"""The client of the code interpreter: cells, state, results, charts, errors, contexts. Exits with 0
if all is as with E2B.

Needs the template code-interpreter-v1, which scripts/code-interpreter creates."""

import base64
import json
import re
import time

from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox


def raises(kind, work):
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


sandbox = Sandbox.create(timeout=900)
try:
    run = sandbox.run_code

    # A value, output while the cell runs, and state from cell to cell.
    seen = []
    first = run("import sys\nx = 20\nprint('out'); print('err', file=sys.stderr)\nx + 1", on_stdout=seen.append)
    assert first.text == "21" and first.execution_count == 1 and first.error is None, first
    assert first.logs.stdout == ["out\n"] and first.logs.stderr == ["err\n"], first.logs
    assert [message.line for message in seen] == ["out\n"] and isinstance(seen[0].timestamp, int), seen
    second = run("x += 1; f'{x}'")
    assert second.text == "21" and second.execution_count == 2, second
    assert run("import os, getpass; print(os.getcwd(), getpass.getuser())").logs.stdout == ["/home/user user\n"]

    # Environment variables of one cell.
    assert run("os.environ['A']", envs={"A": "of the cell"}).text == "of the cell"
    assert run("os.environ.get('A')").text is None

    # An error belongs to the cell, with its traceback. The kernel keeps running.
    failed = run("def f():\n    return 1 / 0\nf()")
    assert failed.error.name == "ZeroDivisionError" and failed.error.value == "division by zero", failed
    plain = re.sub(r"\x1b\[[0-9;]*m", "", failed.error.traceback)
    assert "in f()" in plain and "return 1 / 0" in plain and not failed.results, plain
    assert run("x").text == "21"
    assert run("this isn't Python").error.name == "SyntaxError"

    # Rich results: the last one is the value of the cell.
    rich = run(
        "import pandas, IPython.display as d\n"
        "d.display(d.HTML('<b>x</b>')); d.display(d.JSON({'a': [1]})); d.display(d.SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))\n"
        "pandas.DataFrame({'n': [1, 2], 's': ['a', None]})"
    )
    html, object_, svg, table = rich.results
    assert html.html == "<b>x</b>" and not html.is_main_result and object_.json == {"a": [1]} and "<svg" in svg.svg, rich
    assert table.is_main_result and table.data == {"n": [1, 2], "s": ["a", None]} and "<table" in table.html, table
    assert rich.text == table.text

    # A plot, as an image and as data.
    plot = run(
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2, 3], [1, 4, 9], label='squares'); plt.title('T'); plt.xlabel('time (s)'); plt.legend(); plt.show()"
    )
    [figure] = plot.results
    assert base64.b64decode(figure.png).startswith(b"\x89PNG"), plot
    assert figure.chart.type == "line" and figure.chart.title == "T" and figure.chart.x_unit == "s", figure.chart
    [line] = figure.chart.elements
    assert line.label == "squares" and line.points == [(1, 1), (2, 4), (3, 9)], line.points
    [bars] = run("plt.bar(['a', 'b'], [3, 4]); plt.show()").results
    assert [(bar.label, bar.value) for bar in bars.chart.elements] == [("a", 3), ("b", 4)], bars.chart.to_dict()
    json.dumps(bars.chart.to_dict())

    # A cell that takes too long is interrupted, and the kernel keeps its state.
    raises(TimeoutException, lambda: run("import time\nfor i in range(600): time.sleep(1)", timeout=3))
    assert run("x").text == "21"

    # A cell that ignores its interrupt loses its kernel. The next cell reports that instead of
    # being run.
    stubborn = "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except KeyboardInterrupt:\n        pass"
    raises(TimeoutException, lambda: run(stubborn, timeout=3))
    began = time.monotonic()
    replaced = run("x")
    assert replaced.error.name == "KernelReplaced" and "variables are lost" in replaced.error.value, replaced
    print(f"code_interpreter: a stubborn cell's kernel was replaced in {time.monotonic() - began:.1f} s")
    assert run("x").error.name == "NameError"

    # Running out of memory ends the cell or its kernel, and nothing else.
    began = time.monotonic()
    greedy = run("taken = []\nwhile True: taken.append(bytearray(16 << 20))", timeout=300)
    assert greedy.error.name in ("MemoryError", "KernelDied"), greedy
    assert greedy.error.name == "MemoryError" or "ran out of memory" in greedy.error.value, greedy
    print(f"code_interpreter: {greedy.error.name} after {time.monotonic() - began:.1f} s: {greedy.error.value}")
    assert run("taken = None; 1 + 1").text == "2"

    # Contexts have a separate state and directory.
    context = sandbox.create_code_context(cwd="/tmp")
    assert context.language == "python" and context.cwd == "/tmp"
    assert {"default", context.id} == {each.id for each in sandbox.list_code_contexts()}
    assert run("os.getcwd()", context=context).error.name == "NameError"
    assert run("import os; y = 1; os.getcwd()", context=context).text == "/tmp"
    assert run("y").error.name == "NameError"
    sandbox.restart_code_context(context)
    assert run("y", context=context).error.name == "NameError"
    sandbox.remove_code_context(context)
    raises(NotFoundException, lambda: run("1", context=context))
    raises(SandboxException, lambda: run("1", language="r"))

    # The files and commands of the sandbox can be used as always.
    sandbox.files.write("data.csv", "a,b\n1,2\n")
    assert run("int(pandas.read_csv('data.csv').b.sum())").text == "2"
finally:
    sandbox.kill()
print("code_interpreter: passed")
