"""A LangChain tool that runs an agent's Python code in a microVM, one for each session. Needs langchain-core.

Any agent that calls tools can use `run_python`. The model receives only what the code prints, and how it failed."""

from e2b import CommandExitException, Sandbox, TimeoutException
from langchain_core.tools import tool

MAX_OUTPUT = 8000


class Session:
    """A sandbox that lasts as long as a conversation: files stay from call to call."""

    def __enter__(self):
        self.sandbox = Sandbox.create(timeout=600)
        return self

    def __exit__(self, *_):
        self.sandbox.kill()

    def tool(self):
        sandbox = self.sandbox

        @tool
        def run_python(code: str) -> str:
            """Run Python 3 in a sandbox without network. Print what you want to see. Files stay between calls."""
            sandbox.files.write("/home/user/cell.py", code)
            try:
                result = sandbox.commands.run("python3 cell.py", timeout=120)
                output = result.stdout + result.stderr
            except CommandExitException as error:
                output = f"{error.stdout}{error.stderr}\nended with {error.exit_code}"
            except TimeoutException:
                output = "ended after 120 s"
            return output if len(output) <= MAX_OUTPUT else output[:MAX_OUTPUT] + "\n... cut"

        return run_python


if __name__ == "__main__":
    with Session() as session:
        run_python = session.tool()
        # An agent calls the tool with the arguments that its model wrote.
        print(run_python.invoke({"code": "open('n', 'w').write('41')"}), end="")
        answer = run_python.invoke({"code": "print(int(open('n').read()) + 1)"})
        assert answer == "42\n", answer
        failed = run_python.invoke({"code": "1 / 0"})
        assert "ZeroDivisionError" in failed and "ended with 1" in failed, failed
        print(answer + failed)
