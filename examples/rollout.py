"""Forks one prepared state into many copies that each try another action, and continues with the best copy.

A fork of a running sandbox has its memory, processes and disk, takes milliseconds, and shares every page that neither
writes. So a search over the actions of an agent is cheap: no setup is repeated, and no action has to be undone."""

from concurrent.futures import ThreadPoolExecutor

from e2b import Sandbox

TARGET = "10"
ACTIONS = ["0", "1"]


def step(sandbox: Sandbox, action: str) -> float:
    """Does what an agent would do: adds a character to a file, and returns the score that a script computes."""
    result = sandbox.commands.run(f"printf %s {action} >> guess; cmp -s -n $(wc -c < guess) guess target && wc -c < guess || echo 0")
    return float(result.stdout)


state = Sandbox.create(timeout=600)
try:
    state.files.write("/home/user/target", TARGET)
    state.files.write("/home/user/guess", "")
    for round_ in range(len(TARGET)):
        copies = state.fork(timeout=600, count=len(ACTIONS))
        with ThreadPoolExecutor(len(copies)) as threads:
            scores = list(threads.map(step, copies, ACTIONS))
        best = max(range(len(copies)), key=scores.__getitem__)
        print(f"round {round_}: " + ", ".join(f"{action}: {score:g}" for action, score in zip(ACTIONS, scores)))
        for index, copy in enumerate(copies):
            if index != best:
                copy.kill()
        state.kill()
        state = copies[best]
    found = state.files.read("/home/user/guess")
    assert found == TARGET, found
    print(f"found {found}")
finally:
    state.kill()
