"""Starts the service: `sandboxvm-interpreter [--warm]`. With --warm it imports what most cells need before it listens."""

import argparse
import asyncio
import signal

from . import nursery
from .contexts import Contexts
from .kernel import Nursery
from .service import Service

HOST = "127.0.0.1"

# Leaves no name behind. Formatting draws the figure as a cell's end would.
WARM_UP = """
def warm_up():
    import io, json, math, re, datetime, collections, itertools, random, statistics
    import numpy, pandas, PIL.Image
    import matplotlib.pyplot as pyplot
    from IPython import get_ipython
    show = get_ipython().display_formatter.format
    show(pandas.DataFrame({"a": numpy.arange(3.0), "b": list("xyz")}))
    figure, axes = pyplot.subplots()
    axes.plot([1, 2, 3], label="a")
    axes.set_title("warm")
    axes.legend()
    show(figure)
    pyplot.close("all")
warm_up()
del warm_up
"""


async def main(requests, arguments):
    contexts = Contexts(arguments.home, Nursery(requests))
    default = await contexts.default()
    if arguments.warm:
        await default.run_silently(WARM_UP)
    server = await Service(contexts).listen(HOST, arguments.port)
    [socket] = server.sockets
    print("port", socket.getsockname()[1])
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    server.close()
    await contexts.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="sandboxvm-interpreter", description=__doc__)
    parser.add_argument("--warm", action="store_true", help="import what most cells need, before listening")
    parser.add_argument("--port", type=int, default=49999, help="port on the loopback, 0 for any (default %(default)s)")
    parser.add_argument("--home", default="/home/user", help="directory of contexts made without one (default %(default)s)")
    arguments = parser.parse_args()
    asyncio.run(main(nursery.start(arguments.warm), arguments))
