"""Data of matplotlib's figures: lines, points, bars and pies, with labels and scales. Other figures are charts of an unknown
type. Runs in a kernel.

A value is a number, the name of a category, or a date as ISO 8601 has it: with the zone of the axis, or without where the
dates have none. A point with a missing coordinate is left out."""

import math
import re

import numpy
from matplotlib import dates
from matplotlib.category import StrCategoryConverter
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.patches import Wedge
from matplotlib.ticker import FixedFormatter

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
    title = axes.get_title() or None
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    if wedges:
        return {"type": "pie", "title": title, "elements": [slice_of(wedge) for wedge in wedges]}
    x, y = Scale(axes.xaxis), Scale(axes.yaxis)
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    if bars:
        # Clients read the categories' label as x, however the bars lie.
        across = all(is_upright(group) for group in bars)
        elements = [bar for group in bars for bar in bars_of(x if is_upright(group) else y, group)]
        return {"type": "bar", "title": title} | labels(*((x, y) if across else (y, x))) | {"elements": elements}
    chart = {"title": title} | labels(x, y) | x.described("x") | y.described("y")
    lines = [line for line in axes.lines if line.get_visible() and shows_data(axes, line)]
    if lines:
        return chart | {"type": "line", "elements": [series(x, y, line, *line.get_data(orig=False)) for line in lines]}
    clouds = [item for item in axes.collections if isinstance(item, PathCollection)]
    if clouds:
        # Missing coordinates are masked.
        offsets = [numpy.ma.filled(numpy.ma.asarray(cloud.get_offsets(), float), math.nan) for cloud in clouds]
        elements = [series(x, y, cloud, *places.T) for cloud, places in zip(clouds, offsets)]
        return chart | {"type": "scatter", "elements": elements}
    return chart | {"type": "unknown", "elements": []}


def labels(x, y):
    return {"x_label": x.label, "y_label": y.label, "x_unit": unit(x.label), "y_unit": unit(y.label)}


def unit(label):
    """`m` of `distance (m)` and of `distance [m]`."""
    found = re.search(r"\s\(([^)]+)\)|\[([^\]]+)\]", label or "")
    return (found[1] or found[2]) if found else None


def shows_data(axes, line):
    """False for a line across the whole axes, such as axhline's: its coordinates are fractions of the axes."""
    return all(line.get_transform().contains_branch_seperately(axes.transData))


def series(x, y, artist, across, up):
    points = zip(x.values(across[:MAX_POINTS]), y.values(up[:MAX_POINTS]))
    return {"label": name_of(artist, "_child", "Line"), "points": [point for point in points if None not in point]}


def name_of(artist, prefix, word):
    """An artist's label. matplotlib numbers those that have none: `_child0`."""
    label = str(artist.get_label())
    if label.startswith(prefix):
        return f"{word} {label[len(prefix):]}"
    return "" if label.startswith("_") else label


def is_upright(group):
    return getattr(group, "orientation", "vertical") != "horizontal"


def bars_of(scale, group):
    upright = is_upright(group)
    ticks = {round(place, 6): label for place, label in zip(scale.axis.get_ticklocs(), scale.tick_labels())}
    for bar in group.patches:
        middle = bar.get_x() + bar.get_width() / 2 if upright else bar.get_y() + bar.get_height() / 2
        value = float(bar.get_height() if upright else bar.get_width())
        if not math.isfinite(value) or not math.isfinite(middle):
            continue
        label = scale.date(middle) or ticks.get(round(middle, 6)) or f"{middle:g}"
        yield {"label": label, "group": name_of(group, "_container", "Group"), "value": value}


def slice_of(wedge):
    label = str(wedge.get_label())
    # The angles are sums of single-precision numbers.
    angle = round(abs(float(wedge.theta2) - float(wedge.theta1)), 4)
    return {"label": "" if label.startswith("_") else label, "angle": angle, "radius": float(wedge.r)}


class Scale:
    """What the numbers of an axis stand for."""

    def __init__(self, axis):
        self.axis = axis
        self.label = axis.get_label_text() or None
        self.zone = None
        self.frequency = None
        self.categories = None
        self.kind = self.detect()

    def detect(self):
        converter, locator = self.axis.converter, self.axis.get_major_locator()
        if type(locator).__name__ == "TimeSeries_DateLocator":
            # pandas draws a table with an index of dates over the ordinals of periods, without their zone.
            self.frequency = locator.freq
            return "datetime"
        if isinstance(converter, (dates.DateConverter, dates._SwitchableDateConverter)) or isinstance(locator, dates.DateLocator):
            self.zone = self.axis.units if hasattr(self.axis.units, "utcoffset") else None
            return "datetime"
        if isinstance(converter, StrCategoryConverter):
            self.categories = {place: name for name, place in self.axis.units._mapping.items()}
            return "categorical"
        kind = self.axis.get_scale()
        if kind == "linear" and isinstance(self.axis.get_major_formatter(), FixedFormatter):
            places = list(self.axis.get_ticklocs())
            if places and places == list(range(len(places))):
                return "categorical"
        return kind

    def tick_labels(self):
        return [text.get_text() for text in self.axis.get_ticklabels()]

    def described(self, name):
        ticks = self.axis.get_ticklocs()
        # Ticks of categories are their places; points have their names.
        values = [float(tick) for tick in ticks] if self.categories else self.values(ticks)
        shown = [(tick, label) for tick, label in zip(values, self.tick_labels()) if tick is not None]
        return {
            f"{name}_scale": self.kind,
            f"{name}_ticks": [tick for tick, _ in shown],
            f"{name}_tick_labels": [label for _, label in shown],
        }

    def values(self, places):
        """What each number stands for, None for a missing one."""
        places = numpy.ma.filled(numpy.ma.asarray(places, float), math.nan)
        return [self.value(float(place)) for place in places]

    def value(self, place):
        if not math.isfinite(place):
            return None
        if self.kind == "datetime":
            return self.date(place)
        if self.categories is not None:
            return self.categories.get(place, place)
        return place

    def date(self, place):
        """None for a number that is not a date, or not one of Python's years."""
        try:
            if self.frequency is not None:
                from pandas import Period

                return Period(ordinal=round(place), freq=self.frequency).to_timestamp().isoformat()
            if self.kind != "datetime":
                return None
            if self.zone is None:
                return dates.num2date(place).replace(tzinfo=None).isoformat()
            return dates.num2date(place, tz=self.zone).isoformat()
        except (ValueError, OverflowError):
            return None
