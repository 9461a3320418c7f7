"""Data of pandas' tables: a list of values for each column. Runs in a kernel."""

from .strict_json import Converter, key_text, unique

# Larger tables are for files.
MAX_VALUES = 100_000


def of_frame(frame):
    """The columns by name. Columns of one name are numbered; a column that cannot be read is left out.

    Raises TooManyValues for a table that is too large.
    """
    if frame.size > MAX_VALUES:
        return None
    converter = Converter(most=MAX_VALUES + frame.size, binary=text)
    columns = {}
    for place, name in enumerate(frame.columns):
        try:
            values = frame.iloc[:, place].tolist()
        except Exception:
            continue
        columns[unique(key_text(name), columns)] = [converter.convert(value) for value in values]
    return columns


def text(data):
    return data.decode("utf-8", "backslashreplace")
