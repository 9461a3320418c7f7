"""Strict JSON of any Python value: a value that RFC 8259 has no text for becomes null or text. Runs in kernels and in the
service; imports neither numpy nor pandas, and recognises their values by what they offer."""

import base64
import datetime
import json
import math
import numbers

MAX_DEPTH = 64


class TooManyValues(ValueError):
    """The value holds more values than the converter accepts."""


class NotData(TypeError):
    """The value has no counterpart in JSON, and the converter does not accept text in its place."""


def base64_text(data):
    return base64.b64encode(data).decode("ascii")


def refuse(value):
    raise NotData(type(value).__name__)


class Converter:
    """Converts values to those that `json.dumps` writes as strict JSON, at most `most` of them."""

    def __init__(self, most=math.inf, binary=base64_text, other=str):
        self.left = most
        # The containers around the value at hand.
        self.around = set()
        # What bytes, and what values of unknown types, become.
        self.binary = binary
        self.other = other

    def convert(self, value, depth=0):
        kind = type(value)
        if kind is dict or kind is list:
            return self.container(value, depth)
        self.count(1)
        if value is None or kind is str or kind is int or kind is bool:
            return value
        if kind is float:
            return value if math.isfinite(value) else None
        try:
            return self.rarer(value, depth)
        except (TooManyValues, NotData):
            raise
        except Exception:
            # A value whose own methods fail costs itself only.
            return None

    def count(self, values):
        self.left -= values
        if self.left < 0:
            raise TooManyValues

    def container(self, value, depth):
        self.count(1)
        if depth >= MAX_DEPTH or id(value) in self.around:
            return self.other(value)
        self.around.add(id(value))
        try:
            if not isinstance(value, dict):
                return [self.convert(item, depth + 1) for item in value]
            converted = {}
            for key, item in value.items():
                converted[unique(key_text(key), converted)] = self.convert(item, depth + 1)
            return converted
        finally:
            self.around.discard(id(value))

    def rarer(self, value, depth):
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            return self.container(value, depth)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self.binary(bytes(value))
        if type(value).__name__ in ("NaTType", "NAType"):
            return None
        if isinstance(value, datetime.timedelta):
            return value.isoformat() if hasattr(value, "isoformat") else duration(value)
        if isinstance(value, (datetime.date, datetime.time)):
            return value.isoformat()
        if hasattr(value, "dtype") and hasattr(value, "ndim"):
            return self.array(value, depth)
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Number) and not isinstance(value, numbers.Complex) or isinstance(value, numbers.Real):
            number = float(value)
            return number if math.isfinite(number) else None
        return self.other(value)

    def array(self, value, depth):
        """numpy's arrays and scalars."""
        if value.ndim:
            self.count(value.size)
            items = value.tolist() if value.dtype.kind not in "Mm" else list(value)
            return self.container(items, depth)
        if value.dtype.kind == "M":
            text = str(value)
            return None if text == "NaT" else text
        if value.dtype.kind == "m":
            value = value.astype("timedelta64[us]")
        item = value.item()
        return self.other(value) if type(item) is type(value) else self.convert(item, depth + 1)


def unique(name, taken):
    """The name, with a number behind it where it is taken: as pandas names equal columns of a file."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}.{number}"
    return candidate


def key_text(key):
    if isinstance(key, str):
        return str.__str__(key)
    try:
        return str(key)
    except Exception:
        return type(key).__name__


def duration(value):
    """As ISO 8601 has it, and pandas writes it: only the days can be negative."""
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06}" if value.microseconds else ""
    return f"P{value.days}DT{hours}H{minutes}M{seconds}{fraction}S"


def pack(value):
    """ASCII. Lone surrogates stay escapes, as JSON allows; `without_lone_surrogates` replaces them."""
    try:
        return json.dumps(value, allow_nan=False, default=_usual).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        return json.dumps(Converter().convert(value), allow_nan=False).encode("ascii")


def _usual(value):
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise NotData(type(value).__name__)


def without_lone_surrogates(value):
    """The value with each surrogate that has no partner written out as an escape, `\\ud800`: UTF-8 has no bytes for it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_lone_surrogates(key): without_lone_surrogates(item) for key, item in value.items()}
    return value
