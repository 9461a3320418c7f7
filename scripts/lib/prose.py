#!/usr/bin/env python3
"""Checks the language of pages, comments and string literals against docs/style.md.

usage: prose.py            check the whole tree; exit code 1 if the check fails
       prose.py --counts   print the table ALLOWED as it should be now
       prose.py PATH...    list every finding under these paths

Markdown pages must not have any finding. In code, findings are counted for each area, and an area
may have as many as ALLOWED says. Lower a number when you rewrite an area; never raise one.
"""

import io
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

# Areas of code that are not rewritten yet, with the number of findings that each may still have.
# A file belongs to the longest area that its path starts with; a file of no area may have none.
ALLOWED = {
    "archive": 1,
    "cli": 3,
    "guest-agent": 2,
    "images": 7,
    "manager": 19,
    "mcp": 2,
    "protocol": 5,
    "server": 20,
    "tests": 3,
    "vmm": 0,
}

COLUMNS = 100  # of a line of Markdown
# Programs write these pages. Their words are checked in the code that prints them.
GENERATED = {"docs/cli.md", "docs/comparison.md"}
# Patches are mostly lines of Linux, and the others have no prose.
SKIPPED = re.compile(r"\.patch$|\.lock$|(^|/)package-lock\.json$|(^|/)(corpus|golden)/|^LICENSE$")

# Shows that no noun follows: the end of a clause, a preposition, a conjunction or a verb.
END = (r"(?= ?[.,;:)|!?\"\0]| ?$| (?:and|or|but|that|which|with|without|from|for|in|on|at|to|as|by|"
       r"so|than|where|when|while|until|is|are|has|have|can|may)\b)")
# prose: off
WORDS = [  # pattern, what to write instead
    (r"whoever|somebody|anybody", 'the name of the actor, or "any client"'),
    # Not the Unix user: "nobody", -u nobody, nobody:nogroup.
    (r"(?<![/:.\"'-])(?<!-u )(?<!user )nobody(?![/:\"'-])",
     'the name of the actor, or "no process"'),
    (r"(?:go|goes|going|went|gone) on(?! (?:the|top|a|an|stdout|stderr|its|one)\b)",
     "continue, resume, restore from, keep running"),
    (r"anew", "again"),
    (r"for ever", "indefinitely, or without limit"),
    (r"at once", "immediately, or at the same time"),
    (r"(?<!are )(?<!is )(?<!were )all the same(?= ?[.,;:)\0]| ?$)", "anyway"),
    (r"(?:is|are|was|were|be|been|being) told", "receives, is notified"),
    (r"(?:tell|tells|told|telling) of", "report"),
    (r"(?<!there )(?<!where )(?:is|are|was|were) no"
     r"(?= (?!(?:longer|shorter|more|less|fewer|older|newer|later|earlier|larger|smaller|faster|"
     r"slower|better|one)\b)\w)", "is not a"),
    (r"what is more", "excess data"),
    (r"what there is of", "any partial state"),
    (r"of (?:its|their|one's|his|her|our|your) own" + END, "separate, private, its own"),
    (r"time is up", "has expired, the timeout was reached"),
    (r"most bytes", "maximum rate in bytes per second"),
    (r"end(?:s|ed|ing)? in order(?! to\b)", "gracefully"),
    (r"(?:leave|leaves|leaving|left) (?:[\w'-]+ ){0,4}alone" + END, "ignore, skip, do not modify"),
    (r"(?:take|takes|taking|took) (?:[\w'-]+ ){0,3}along", "end or copy it as well"),
    (r"(?:let|lets|letting) go", "release"),
]
# prose: on
WORDS = [(re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE), better)
         for pattern, better in WORDS]

LITERAL = "\0"  # stands for masked text, so that no phrase reaches across it


def mask(text, spans):
    """Replaces the characters of `spans` by LITERAL, and keeps all line breaks."""
    characters = list(text)
    for begin, end in spans:
        for index in range(begin, end):
            if characters[index] != "\n":
                characters[index] = LITERAL
    return "".join(characters)


def mask_all(text, *patterns):
    """Masks every match of the patterns, one pattern after the other."""
    for pattern in patterns:
        text = mask(text, [match.span() for match in re.finditer(pattern, text)])
    return text


OFF = r"(?s)prose: off.*?(?:prose: on|\Z)"
FENCED = r"(?ms)^[ ]*```.*?^[ ]*```"
URL = r"https?://\S+"


def prose_of_markdown(text):
    comment, code, target = r"(?s)<!--.*?-->", r"`[^`]*`", r"\]\([^)]*\)"
    return mask_all(text, OFF, FENCED, comment, code, target, URL)


C_LIKE = re.compile(
    r"""(?P<line>//[^\n]*)|(?P<block>/\*.*?\*/)|(?P<raw>\bb?r(?P<hashes>\#*)".*?"(?P=hashes))"""
    r"""|(?P<string>"(?:\\.|[^"\\])*")|(?P<char>'(?:\\[^\n]{1,9}?|[^'\\\n])')""", re.DOTALL)


def prose_of_c_like(text):
    """Comments and string literals of Rust, C and JavaScript."""
    spans = [match.span() for match in C_LIKE.finditer(text) if match["char"] is None]
    return keep(text, spans, r"///?/?!?|/\*+!?|\*/", r"\\\n\s*|\\n")


def prose_of_python(text):
    """Comments and string literals, doc strings among them."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    # Since Python 3.12 an f-string is several tokens, of which the middle ones are its text.
    kinds = {tokenize.COMMENT, tokenize.STRING,
             getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spans = [tuple(starts[row - 1] + column for row, column in (token.start, token.end))
             for token in tokens if token.type in kinds]
    return keep(text, spans, r"#", r"\\\n\s*|\\n")


def prose_of_shell(text):
    """The whole file: messages stand without quotes in here documents."""
    return keep(text, [(0, len(text))], r"(?<!\S)#+", r"\\\n\s*")


def keep(text, spans, marks, escapes):
    """Masks all but the spans, and code and addresses in them; blanks comment marks and escapes.

    White space outside of the spans stays, as a phrase may continue on the next line of a comment.
    """
    masked, position = [match.span() for match in re.finditer(OFF, text)], 0
    for begin, end in [*spans, (len(text), len(text))]:
        masked += [match.span() for match in re.compile(r"\S+").finditer(text, position, begin)]
        position = end
    text = mask(text, masked)
    for pattern in (marks, escapes):
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return mask_all(text, r"`[^`\n]*`", URL)


def findings(text):
    """Returns (line, words, what to write instead) of each phrase to avoid, also across lines."""
    flat, origin = [], []
    for match in re.finditer(r"\s+|\S", text):
        flat.append(" " if match[0].isspace() else match[0])
        origin.append(match.start())
    joined = "".join(flat)
    found = [(text.count("\n", 0, origin[match.start()]) + 1, match[0], better)
             for pattern, better in WORDS for match in pattern.finditer(joined)]
    return sorted(found)


def long_lines(text):
    """Yields (line, length) of each line of Markdown that is too long and can be broken."""
    plain = re.sub(FENCED, lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(plain.split("\n"), 1):
        exempt = line.startswith("|") or "](" in line or "://" in line
        if len(line) > COLUMNS and not exempt and " " in re.sub(r"`[^`]*`", "", line).strip():
            yield number, len(line)


def kind(path, text):
    """Returns the function that finds the prose of a file, or None for an unknown kind of file."""
    by_suffix = {
        ".md": prose_of_markdown, ".py": prose_of_python,
        ".rs": prose_of_c_like, ".c": prose_of_c_like, ".cjs": prose_of_c_like,
        ".js": prose_of_c_like, ".mjs": prose_of_c_like,
        ".sh": prose_of_shell, ".toml": prose_of_shell, ".service": prose_of_shell,
        ".config": prose_of_shell,
    }
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]
    first = text.split("\n", 1)[0]
    if first.startswith("#!"):
        return prose_of_python if "python" in first else prose_of_shell
    return prose_of_shell if path.name == "packages" else None


def tracked():
    """Returns the names of all files that git knows or would add."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
               "--exclude-standard"]
    names = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")
    return sorted({name for name in names if name and not SKIPPED.search(name)})


def area_of(name):
    areas = [area for area in ALLOWED if name == area or name.startswith(area + "/")]
    return max(areas, key=len, default=None)


def scan(names):
    """Yields (path, line, words, what to write instead, is it Markdown) of every finding."""
    for name in names:
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        prose = kind(path, text)
        if prose is None or name in GENERATED:
            continue
        is_markdown = path.suffix == ".md"
        for line, words, better in findings(prose(text)):
            yield name, line, words, better, is_markdown
        if is_markdown:
            for line, length in long_lines(text):
                yield name, line, f"{length} columns", f"at most {COLUMNS}", True


def show(name, line, words, better, _):
    print(f'{name}:{line}: "{words}": write {better}', file=sys.stderr)


def below(name, path):
    return path in ("", ".", name) or name.startswith(path + "/")


def list_all(paths):
    found = list(scan(name for name in tracked() if any(below(name, path) for path in paths)))
    for finding in found:
        show(*finding)
    return len(found)


def check():
    """Prints what is wrong, and returns whether anything is."""
    failed, areas = False, {}
    for finding in scan(tracked()):
        if finding[4]:
            show(*finding)
            failed = True
        else:
            areas.setdefault(area_of(finding[0]), []).append(finding)
    for finding in areas.pop(None, []):
        show(*finding)
        failed = True
    for area, allowed in ALLOWED.items():
        count = len(areas.get(area, []))
        if count > allowed:
            print(f"{area}: {count} findings, {allowed} are allowed: "
                  f"`python3 scripts/lib/prose.py {area}` lists them", file=sys.stderr)
            failed = True
        elif count < allowed:
            print(f"{area}: {count} findings, {allowed} are allowed: lower the number in ALLOWED "
                  "(scripts/lib/prose.py)", file=sys.stderr)
    return failed


def print_counts():
    counts = Counter(area_of(name) or name for name, _, _, _, page in scan(tracked()) if not page)
    for area in sorted({*ALLOWED, *counts}):
        print(f'    "{area}": {counts[area]},')


def main(arguments):
    root = Path(__file__).resolve().parent.parent.parent
    paths = [os.path.relpath(os.path.abspath(argument), root) for argument in arguments]
    os.chdir(root)
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
    elif arguments == ["--counts"]:
        print_counts()
    elif arguments:
        return 1 if list_all(paths) else 0
    else:
        return 1 if check() else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
