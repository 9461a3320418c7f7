"""What clients read, made of what a kernel says."""

import time

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
    """The line for a message of a kernel; None for one that says nothing to clients."""
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
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "'" else text


def error(name, value, traceback=""):
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def end():
    return {"type": "end_of_execution"}
