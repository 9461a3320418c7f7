"""Prints a software bill of materials (CycloneDX 1.5, JSON) of a release.

sbom.py VERSION BASE_MANIFEST KERNEL_KEY KERNEL_RELEASE <cargo-metadata.json

Lists the crates that are linked into the programs, the packages of the base image and the guest's kernel. It reads what
the build recorded and looks nothing up.
"""

import json
import sys


def crates(metadata):
    """Returns the crates from elsewhere that the programs are made of, tests and build tools left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    roots = [i for i in metadata["workspace_members"] if packages[i]["name"] not in ("sandboxvm-tests", "sandboxvm-fuzz-targets")]
    seen, queue = set(), list(roots)
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        for dependency in nodes[current]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                queue.append(dependency["pkg"])
    found = [packages[i] for i in seen if packages[i]["source"]]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def main():
    version, manifest, kernel_key, kernel_release = sys.argv[1:]
    components = []
    for package in crates(json.load(sys.stdin)):
        component = {
            "type": "library",
            "name": package["name"],
            "version": package["version"],
            "purl": f"pkg:cargo/{package['name']}@{package['version']}",
        }
        if package["license"]:
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        components.append(component)
    with open(manifest, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#"):
                continue
            name, package_version, architecture = line.split()
            purl = f"pkg:deb/debian/{name}@{package_version}?arch={architecture}&distro=bookworm"
            components.append({"type": "library", "group": "base image", "name": name, "version": package_version, "purl": purl})
    components.append({
        "type": "operating-system",
        "name": "linux",
        "version": kernel_release,
        "licenses": [{"license": {"id": "GPL-2.0-only"}}],
        "properties": [{"name": "sandboxvm:kernel-key", "value": kernel_key}],
    })
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "sandboxvm", "version": version}},
        "components": components,
    }
    json.dump(bill, sys.stdout, indent=1, sort_keys=True)
    print()


main()
