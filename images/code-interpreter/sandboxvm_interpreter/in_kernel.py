"""Additions to IPython in a kernel: tables, charts, lists and dictionaries as data beside their text, the environment of one
cell, and randomness of its own where its machine is a copy of another. An IPython extension. It must not fail, and must write
nothing, where a user's cell would not have."""

import os
import random
import sys
import warnings

TABLE = "application/vnd.sandboxvm.table+json"
CHART = "application/vnd.sandboxvm.chart+json"

MACHINE = "/etc/machine-id"

before = {}
machine = None


def load_ipython_extension(shell):
    """Called by IPython."""
    bundles = shell.display_formatter.mimebundle_formatter
    # By name: what a cell does not import costs nothing.
    bundles.for_type_by_name("pandas.core.frame", "DataFrame", table)
    bundles.for_type_by_name("matplotlib.figure", "Figure", chart)
    json = shell.display_formatter.formatters["application/json"]
    json.for_type(list, plain)
    json.for_type(dict, plain)
    renew_randomness()
    shell.events.register("pre_run_cell", renew_randomness)


def renew_randomness(*_):
    """In a kernel or machine that is a copy of another, generators would continue alike in all copies."""
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


def quietly(work, value):
    """What `work` makes of the value, None where it fails. The user's filters may turn warnings into exceptions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(value)
    except Exception:
        return None


def table(frame, **_):
    from .tables import of_frame

    data = quietly(of_frame, frame)
    return {} if data is None else {TABLE: data}


def chart(figure, **_):
    def of_figure(figure):
        from .charts import of_figure

        return of_figure(figure)

    data = quietly(of_figure, figure)
    return {CHART: data} if data else {}


def plain(value):
    """A list or dictionary as JSON; None where it holds anything that is not data."""
    from .strict_json import Converter, refuse
    from .tables import MAX_VALUES

    return quietly(Converter(most=MAX_VALUES, other=refuse).convert, value)


def set_environment(variables):
    """Sets variables until `reset_environment`."""
    for name, value in variables.items():
        before.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def reset_environment():
    """Restores the variables that cells set with `set_environment`."""
    while before:
        name, value = before.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
