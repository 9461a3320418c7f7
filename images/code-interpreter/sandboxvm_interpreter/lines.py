"""The lines that clients read, made of a kernel's messages."""

import time

from . import strict_json

MIME_TYPES = {
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    # Of in_kernel.
    "application/vnd.sandboxvm.table+json": "data",
    "application/vnd.sandboxvm.chart+json": "chart",
}


def of_message(message):
    """Returns the line for a kernel's message, None for a message that clients do not receive."""
    content = message["content"]
    match message["header"]["msg_type"]:
        case "stream":
            return {"type": content["name"], "text": content["text"], "timestamp": time.time_ns()}
        case "execute_result":
            return result(content["data"], True)
        case "display_data" | "update_display_data":
            return result(content["data"], False)
        case "error":
            return error(content["ename"], content["evalue"], "\n".join(content["traceback"]))
        case "execute_input":
            return {"type": "number_of_executions", "execution_count": content["execution_count"]}
    return None


def result(data, is_main):
    line = {"type": "result", "is_main_result": is_main}
    extra = {}
    for mime, value in data.items():
        if mime == "text/plain":
            line["text"] = unquoted(value)
        elif mime in MIME_TYPES:
            line[MIME_TYPES[mime]] = value
        else:
            extra[mime] = value
    if extra:
        line["extra"] = extra
    return line


def unquoted(text):
    """A cell whose value is a string is shown as the string, as clients expect."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def encoded(line):
    """The line's bytes: strict JSON in ASCII, and a line feed. Clients split lines at more characters than that one."""
    packed = strict_json.pack(line)
    if b"\\ud" in packed:
        packed = strict_json.pack(strict_json.without_lone_surrogates(line))
    return packed + b"\n"


def error(name, value, traceback=""):
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def end():
    return {"type": "end_of_execution"}
