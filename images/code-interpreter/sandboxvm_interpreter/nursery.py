"""Where kernels come from: a process that has imported what they need, and forks one off itself for each request. So a new
context costs a fork and not a minute of imports, and its memory is shared until it is written.

Forked off before the service has an event loop or a socket of Jupyter's, which do not survive a fork; it has none of them
itself, and no thread but its own."""

import ctypes
import gc
import json
import os
import signal
import socket
import sys

PLOTS = "module://matplotlib_inline.backend_inline"
MAX_REQUEST = 64 * 1024
# Of <linux/prctl.h>.
PR_SET_PDEATHSIG = 1


def start(warm):
    """Makes one; the value is the socket that it takes requests on."""
    # Before anything that reads it is imported.
    os.environ["MPLBACKEND"] = PLOTS
    prepare(warm)
    gc.freeze()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        try:
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def serve(requests):
    """Until the service is gone."""
    # No process waits for the children: the system forgets them when they end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What is for the service may come to its whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while wanted := requests.recv(MAX_REQUEST):
        wanted = json.loads(wanted)
        try:
            os.chdir(wanted["cwd"])
            child = os.fork()
        except OSError as error:
            requests.send(json.dumps({"error": error.strerror or str(error), "errno": error.errno or 0}).encode())
            continue
        if child == 0:
            requests.close()
            run(wanted["connection"])
        requests.send(json.dumps({"pid": child}).encode())


def prepare(warm):
    """Imports. Not pyplot: it asks, when imported, whether a kernel shows its plots."""
    import ipykernel.ipkernel
    import ipykernel.kernelapp
    import IPython.core.completer
    import IPython.core.pylabtools

    from . import in_kernel

    if warm:
        import io

        import numpy
        import pandas
        import PIL.Image
        import PIL.PngImagePlugin
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from . import charts, tables

        frame = pandas.DataFrame({"a": numpy.arange(3.0), "b": list("xyz")})
        frame.to_html()
        tables.of_frame(frame)
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot([1, 2, 3], label="a")
        axes.set_title("warm")
        axes.legend()
        figure.savefig(io.BytesIO(), format="png")
        charts.of_figure(figure)


def run(connection):
    """Is a kernel from here on."""
    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    # Ends with the nursery, which ends with the service.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Where the sandbox runs out of memory, a kernel ends before the service and this process do.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    sys.argv = ["python3"]
    status = 1
    try:
        IPKernelApp.launch_instance([
            "-f", connection, "--Application.log_level=ERROR", "--HistoryManager.enabled=False",
            "--InteractiveShellApp.extra_extensions=sandboxvm_interpreter.in_kernel",
            "--Session.packer=sandboxvm_interpreter.strict_json.pack", "--Session.unpacker=json",
        ])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else status
    finally:
        # Not through what the nursery would do at its end.
        os._exit(status)
