"""What can be asked: running a cell, and contexts made, listed, restarted and removed. Translates, and owns nothing."""

from . import http, lines
from .contexts import MAX_CONTEXTS, NoSuchContext, TooManyContexts
from .http import HttpError
from .strict_json import without_lone_surrogates

PYTHON = ("python", "python3", "py", "ipython")


class Service:
    """Answers requests with what the contexts do."""

    def __init__(self, contexts):
        self.contexts = contexts

    async def listen(self, host, port):
        return await http.listen(self.answer, host, port)

    async def answer(self, request):
        place = [part for part in request.path.split("/") if part]
        try:
            match (request.method, *place):
                case ("GET", "health"):
                    return 200, "OK"
                case ("POST", "execute"):
                    return await self.execute(request.json())
                case ("GET", "contexts"):
                    return 200, [context.shown() for context in self.contexts.all()]
                case ("POST", "contexts"):
                    return 201, (await self.create(request.json())).shown()
                case ("POST", "contexts", context, "restart"):
                    await self.contexts.find(context).restart()
                    return 200, self.contexts.find(context).shown()
                case ("DELETE", "contexts", context):
                    await self.contexts.remove(context)
                    return 204, None
                case (_, "health" | "execute" | "contexts", *_):
                    raise HttpError(405, f"{request.method} {request.path} cannot be asked for")
                case _:
                    raise HttpError(404, f"there is nothing at {request.path}")
        except NoSuchContext as error:
            raise HttpError(404, f"there is no context {error}") from None
        except TooManyContexts:
            raise HttpError(429, f"there are {MAX_CONTEXTS} contexts already; remove one") from None

    async def execute(self, wanted):
        code = wanted.get("code")
        if not isinstance(code, str):
            raise HttpError(400, "code is missing")
        environment = environment_of(wanted.get("env_vars"))
        if context_id := wanted.get("context_id"):
            if not isinstance(context_id, str):
                raise HttpError(400, "context_id is not text")
            if wanted.get("language"):
                raise HttpError(400, "state either context_id or language")
            context = self.contexts.find(context_id)
        else:
            check_language(wanted.get("language"))
            context = await self.contexts.default()
        return lines_of(context.run(without_lone_surrogates(code), without_lone_surrogates(environment)))

    async def create(self, wanted):
        check_language(wanted.get("language"))
        cwd = wanted.get("cwd")
        if cwd is not None and not isinstance(cwd, str):
            raise HttpError(400, "cwd is not a path")
        try:
            return await self.contexts.create(cwd)
        except OSError as error:
            raise HttpError(400, f"cwd {cwd}: {error.strerror}") from None
        except ValueError as error:
            # A NUL, or a surrogate that no name of a file has.
            raise HttpError(400, f"cwd {cwd!r}: {error}") from None


async def lines_of(cell):
    """The lines of a cell in bytes. Closes the cell with itself."""
    try:
        async for line in cell:
            yield lines.encoded(line)
    finally:
        await cell.aclose()


def check_language(language):
    if language and (not isinstance(language, str) or language.lower() not in PYTHON):
        raise HttpError(400, f"language {language!r} is not installed in this sandbox; python is")


def environment_of(variables):
    if variables is None:
        return {}
    if not isinstance(variables, dict):
        raise HttpError(400, "env_vars is not an object")
    for name, value in variables.items():
        if not name or "=" in name or not isinstance(value, str) or "\0" in name + value:
            raise HttpError(400, f"env_vars: {name!r} is not a variable with a text as its value")
    return variables
