#!/usr/bin/env python3
"""Fails when modules of a crate import each other in a circle.

    scripts/lib/module_cycles.py [--arrows] [CRATE...]     every crate of the workspace unless some are named

A module is a file. It imports another one when its code, tests aside, names an item of it by a path
that begins with `crate`, `self`, `super` or a child of the module. A path through a re-export leads
to the module that defines the item. Re-exports and `mod` declarations do not count as imports: a
parent may present what its children define.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

STRING = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\(?:x..|u\{[^}]*\}|.)|[^\\'\n])'""", re.DOTALL
)
USE = re.compile(r"(?<![\w#])((?:pub(?:\s*\([^)]*\))?\s+)?)use\s+([^;]+);")
PATH = re.compile(r"(?<![\w:$])((?:crate|self|super)(?:\s*::\s*(?:r#)?\w+)+)")
TEST_ITEM = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?(mod\s+\w+\s*)?")
VISIBILITY = re.compile(r"pub\s*\(\s*in\s+[^)]*\)")
MOD = re.compile(r"(?:#\[path\s*=[^\]]*\]\s*)?(?<!\w)mod\s+(\w+)\s*;")


def blank_text(source):
    """Empties comments and literals, so that braces and paths in them count for nothing."""
    return STRING.sub(lambda found: "\n" * found.group().count("\n") or " ", source)


def without_tests(source):
    """Cuts out items that only a test build has. Returns the rest, and the names of their module files."""
    cut, files = [], set()
    for found in TEST_ITEM.finditer(source):
        start = end = found.end()
        if name := found.group(1):
            files.add(name.split()[1]) if source[start : start + 1] == ";" else None
        while end < len(source) and source[end] not in "{;":
            end += 1
        if end < len(source) and source[end] == "{":
            depth = 0
            while end < len(source):
                depth += {"{": 1, "}": -1}.get(source[end], 0)
                end += 1
                if depth == 0:
                    break
        cut.append((found.start(), end + 1))
    for start, end in reversed(cut):
        source = source[:start] + " " + source[end:]
    return source, files


def leaves(tree, prefix=()):
    """The paths of a use tree, each with the name it is bound to."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, alias = tree.partition(" as ")
        parts = prefix + tuple(part.strip().removeprefix("r#") for part in path.split("::") if part.strip())
        if parts and parts[-1] == "self":
            parts = parts[:-1]
        yield parts, alias.strip() or (parts[-1] if parts else "")
        return
    inner = prefix + tuple(part.strip() for part in tree[:brace].split("::") if part.strip())
    depth, begin, body = 0, 0, tree[brace + 1 : tree.rindex("}")]
    for at, letter in enumerate(body + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if body[begin:at].strip():
                yield from leaves(body[begin:at], inner)
            begin = at + 1


class Crate:
    """The modules below one root file."""

    def __init__(self, root):
        self.modules = {}
        self.exports = defaultdict(dict)
        self.globs = defaultdict(list)
        self.read((), root, root.parent)
        self.paths = {module: self.of(module) for module in self.modules}

    def read(self, module, file, directory):
        source, test_files = without_tests(blank_text(file.read_text()))
        self.modules[module] = (file, source)
        for name in MOD.findall(source):
            if name in test_files:
                continue
            for child, inside in [(directory / f"{name}.rs", directory / name), (directory / name / "mod.rs", directory / name)]:
                if child.is_file():
                    self.read(module + (name,), child, inside)

    def of(self, module):
        """The paths that this module's code names."""
        _, source = self.modules[module]
        named = set()
        for visibility, tree in USE.findall(source):
            for path, name in leaves(tree):
                path = self.absolute(module, path)
                if path is None:
                    continue
                if name == "*":
                    self.globs[module].append(path[:-1])
                else:
                    self.exports[module][name] = path
                if not visibility:
                    named.add(path)
        body = VISIBILITY.sub(" ", USE.sub(" ", source))
        for found in re.findall(r"(?<![\w:$.])((?:\w+)(?:::\w+)+)", body):
            parts = tuple(found.split("::"))
            if module + parts[:1] in self.modules:
                named.add(module + parts)
        for path in PATH.findall(body):
            if path := self.absolute(module, tuple(part.strip() for part in path.split("::"))):
                named.add(path)
        return named

    def absolute(self, module, path):
        base = module
        if path[:1] == ("crate",):
            return path[1:]
        if path[:1] == ("self",):
            path = path[1:]
        elif path[:1] == ("super",):
            while path[:1] == ("super",):
                base, path = base[:-1], path[1:]
        elif not (path and module + path[:1] in self.modules):
            return None
        return base + path

    def defines(self, path, seen=()):
        """The module that a path leads to, through re-exports."""
        if path in self.modules:
            return path
        for end in range(len(path) - 1, -1, -1):
            module, name = path[:end], path[end] if end < len(path) else None
            if module not in self.modules:
                continue
            if (module, name) in seen:
                return module
            if target := self.exports[module].get(name):
                return self.defines(target + path[end + 1 :], seen + ((module, name),))
            for target in self.globs[module]:
                found = self.defines(target + path[end:], seen + ((module, name),))
                if found != target or target in self.modules:
                    return found
            return module
        return ()

    def arrows(self):
        arrows = defaultdict(lambda: defaultdict(set))
        for module, paths in self.paths.items():
            for path in paths:
                target = self.defines(path)
                if target != module:
                    arrows[module][target].add("::".join(path[-1:]) or "crate")
        return arrows


def circles(arrows, modules):
    """Strongly connected components of more than one module (Tarjan)."""
    index, low, stack, on, found = {}, {}, [], set(), []
    sys.setrecursionlimit(10_000)

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        on.add(module)
        for target in arrows.get(module, ()):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in on:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            circle = []
            while not circle or circle[-1] != module:
                circle.append(stack.pop())
                on.discard(circle[-1])
            if len(circle) > 1:
                found.append(sorted(circle))

    for module in modules:
        if module not in index:
            visit(module)
    return found


def main():
    arguments = sys.argv[1:]
    show = "--arrows" in arguments
    wanted = [argument for argument in arguments if not argument.startswith("-")]
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "*.rs"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    roots = [ROOT / line for line in listing.stdout.splitlines() if re.search(r"(^|/)src/(lib|main|bin/[^/]+)\.rs$", line)]
    failed = 0
    for root in sorted(roots):
        name = str(root.relative_to(ROOT))
        if not root.is_file() or wanted and not any(name.startswith(f"{crate.rstrip('/')}/") for crate in wanted):
            continue
        crate = Crate(root)
        arrows = crate.arrows()
        for circle in circles(arrows, crate.modules):
            failed += 1
            print(f"{name}: {len(circle)} modules import each other in a circle:")
            for module in circle:
                for target in circle:
                    if names := arrows[module].get(target):
                        print(f"  {'::'.join(module) or 'crate'} -> {'::'.join(target) or 'crate'}: {', '.join(sorted(names))}")
        if show:
            for module in sorted(crate.modules):
                for target, names in sorted(arrows[module].items()):
                    print(f"{name}: {'::'.join(module) or 'crate'} -> {'::'.join(target) or 'crate'}: {', '.join(sorted(names))}")
    sys.exit(1 if failed else 0)


main()
