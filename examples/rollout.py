"""One prepared state, forked into many that each try another action; the best is kept and is the state of the next round.

A fork of a running sandbox has its memory, its processes and its disk, takes milliseconds, and shares every page that
neither writes. That makes search over what an agent does cheap: nothing is set up twice, nothing is undone by hand."""

from concurrent.futures import ThreadPoolExecutor

from e2b import Sandbox

TARGET = "110"
ACTIONS = ["0", "1"]


def step(sandbox: Sandbox, action: str) -> float:
    """What an agent does: here a character is added to a file, and the environment, a script, says what it is worth."""
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
