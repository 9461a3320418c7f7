"""Data of matplotlib's figures: lines, points, bars and pies, with labels and scales. What is none of these is said to be
of an unknown type. Runs in a kernel."""

import math

from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.dates import DateLocator, num2date
from matplotlib.patches import Wedge

MAX_POINTS = 100_000


def of_figure(figure):
    """A chart; of several axes a chart of charts. None for a figure without any."""
    charts = [of_axes(axes) for axes in figure.axes if axes.has_data() or axes.patches]
    if not charts:
        return None
    if len(charts) == 1:
        return charts[0]
    title = figure._suptitle.get_text() if figure._suptitle else ""
    return {"type": "superchart", "title": title, "elements": charts}


def of_axes(axes):
    title = axes.get_title()
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    if wedges:
        return {"type": "pie", "title": title, "elements": [slice_of(axes, wedges, wedge) for wedge in wedges]}
    chart = {"title": title, "x_label": axes.get_xlabel() or None, "y_label": axes.get_ylabel() or None}
    chart |= {"x_unit": unit(chart["x_label"]), "y_unit": unit(chart["y_label"])}
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    if bars:
        return chart | {"type": "bar", "elements": [bar for group in bars for bar in bars_of(axes, group)]}
    points = [item for item in axes.collections if isinstance(item, PathCollection)]
    lines = [line for line in axes.lines if line.get_visible()]
    chart |= scale(axes.xaxis, "x") | scale(axes.yaxis, "y")
    if lines:
        return chart | {"type": "line", "elements": [series(axes, line, zip(*line.get_data(orig=False))) for line in lines]}
    if points:
        return chart | {"type": "scatter", "elements": [series(axes, item, item.get_offsets()) for item in points]}
    return chart | {"type": "unknown", "elements": []}


def series(axes, artist, pairs):
    label = str(artist.get_label())
    across, up = is_date(axes.xaxis), is_date(axes.yaxis)
    points = [(value(x, across), value(y, up)) for x, y in list(pairs)[:MAX_POINTS]]
    return {"label": "" if label.startswith("_") else label, "points": points}


def bars_of(axes, group):
    label = str(group.get_label())
    upright = getattr(group, "orientation", "vertical") != "horizontal"
    axis = axes.xaxis if upright else axes.yaxis
    names = {round(place, 6): text.get_text() for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels())}
    for bar in group.patches:
        middle = bar.get_x() + bar.get_width() / 2 if upright else bar.get_y() + bar.get_height() / 2
        length = bar.get_height() if upright else bar.get_width()
        name = names.get(round(middle, 6)) or f"{middle:g}"
        yield {"label": name, "group": "" if label.startswith("_") else label, "value": value(length, False)}


def slice_of(axes, wedges, wedge):
    label = str(wedge.get_label())
    return {
        "label": "" if label.startswith("_") else label,
        "angle": value(abs(wedge.theta2 - wedge.theta1), False),
        "radius": value(wedge.r, False),
    }


def scale(axis, name):
    date = is_date(axis)
    kind = "datetime" if date else "categorical" if "Category" in type(axis.get_major_locator()).__name__ else axis.get_scale()
    ticks = [value(tick, date) for tick in axis.get_ticklocs()]
    labels = [text.get_text() for text in axis.get_ticklabels()]
    return {f"{name}_scale": kind, f"{name}_ticks": ticks, f"{name}_tick_labels": labels}


def is_date(axis):
    return isinstance(axis.get_major_locator(), DateLocator)


def unit(label):
    """`m` of `distance (m)`."""
    if label and label.endswith(")") and "(" in label:
        return label[label.rindex("(") + 1:-1] or None
    return None


def value(number, is_a_date):
    """As JSON has it."""
    if is_a_date:
        return num2date(number).isoformat()
    try:
        number = float(number)
    except (TypeError, ValueError):
        return str(number)
    return number if math.isfinite(number) else None
