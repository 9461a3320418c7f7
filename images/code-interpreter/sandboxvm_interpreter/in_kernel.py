"""What is added to IPython in a kernel: tables and charts as data beside their pictures, variables of one cell's
environment, and randomness of its own where its machine is a copy of another. An IPython extension. It must not fail where a user's cell would not have."""

import json
import os
import random
import sys

TABLE = "application/vnd.sandboxvm.table+json"
CHART = "application/vnd.sandboxvm.chart+json"
# More is for files.
MAX_CELLS = 100_000

MACHINE = "/etc/machine-id"

before = []
machine = None


def load_ipython_extension(shell):
    """Called by IPython."""
    formatter = shell.display_formatter.mimebundle_formatter
    # By name: what a cell does not import costs nothing.
    formatter.for_type_by_name("pandas.core.frame", "DataFrame", table)
    formatter.for_type_by_name("matplotlib.figure", "Figure", chart)
    renew_randomness()
    shell.events.register("pre_run_cell", renew_randomness)


def renew_randomness(*_):
    """In a kernel or machine that is a copy of another, generators would go on alike in all copies."""
    global machine
    try:
        with open(MACHINE) as file:
            here = file.read()
    except OSError:
        return
    if here == machine:
        return
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    machine = here


def table(frame, **_):
    """A table's columns, each a list."""
    try:
        if frame.size > MAX_CELLS:
            return {}
        columns = {}
        for place, name in enumerate(frame.columns):
            values = frame.iloc[:, place].to_json(orient="values", date_format="iso", default_handler=str)
            columns[str(name)] = json.loads(values)
        return {TABLE: columns}
    except Exception:
        return {}


def chart(figure, **_):
    """What a figure shows, as data."""
    try:
        from .charts import of_figure

        data = of_figure(figure)
        return {CHART: data} if data else {}
    except Exception:
        return {}


def push_environment(variables):
    """Sets them, until popped."""
    before.append({name: os.environ.get(name) for name in variables})
    os.environ.update(variables)


def pop_environment():
    """Puts back what was there."""
    if before:
        for name, value in before.pop().items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
