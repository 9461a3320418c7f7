"""Starts the service: `sandboxvm-interpreter [--warm]`. With --warm, what most cells import was imported before it listens."""

import argparse
import asyncio

from . import nursery
from .contexts import Contexts, Nursery
from .service import Service

HOST, PORT = "127.0.0.1", 49999
HOME = "/home/user"

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


async def main(requests, warm):
    kernels = Nursery(requests)
    contexts = Contexts(HOME, kernels)
    default = await contexts.default()
    if warm:
        await default.run_silently(WARM_UP)
    server = await Service(contexts).listen(HOST, PORT)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="sandboxvm-interpreter", description=__doc__)
    parser.add_argument("--warm", action="store_true", help="import what most cells need, before listening")
    arguments = parser.parse_args()
    asyncio.run(main(nursery.start(arguments.warm), arguments.warm))
