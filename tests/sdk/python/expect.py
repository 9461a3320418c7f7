"""Helpers for failures that the programs expect. Not a program itself."""


def raises(kind, work):
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


async def raises_async(kind, work):
    try:
        await work
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
