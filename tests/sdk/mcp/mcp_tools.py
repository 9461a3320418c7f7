#!/usr/bin/env python3
"""Uses the real `sandboxvm mcp` with the client library of the MCP project, over stdio and over HTTP,
with real microVMs.

Needs the Python package `mcp` (2.3) and, in the environment: SANDBOXVM, the program to test;
SANDBOXVM_HOME, an empty home; SANDBOXVM_BUNDLE, if the program does not find its bundle by itself.
Exits with 0 if all assertions hold.
"""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time

import httpx2
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

PROGRAM = os.environ["SANDBOXVM"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith("SANDBOXVM_")}
TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "sk-value-that-no-agent-may-see-4711"
TOOLS = {
    "file_list", "file_read", "file_write", "sandbox_create", "sandbox_fork", "sandbox_list", "sandbox_network",
    "sandbox_remove", "sandbox_reset", "sandbox_run", "sandbox_snapshot",
}
BEGAN = time.monotonic()


def say(message):
    print(f"{time.monotonic() - BEGAN:6.1f} {message}", flush=True)


def cli(*arguments):
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout.strip()


class Tools:
    """A client whose methods are the tools."""

    def __init__(self, client):
        self.client = client

    async def ok(self, tool, **arguments):
        result = await self.client.call_tool(tool, arguments, read_timeout_seconds=300)
        assert not result.is_error, f"{tool} {arguments}: {result.content}"
        # The protocol has two forms of a result, which must be equal.
        assert json.loads(result.content[0].text) == result.structured_content
        return result.structured_content

    async def refused(self, tool, *words, **arguments):
        result = await self.client.call_tool(tool, arguments, read_timeout_seconds=300)
        assert result.is_error, f"{tool} {arguments} succeeded: {result.structured_content}"
        text = result.content[0].text
        for word in words:
            assert word in text, f"{tool}: {word!r} is not in {text!r}"


async def tools_are_described(tools):
    listed = {tool.name: tool for tool in (await tools.client.list_tools()).tools}
    assert set(listed) == TOOLS, set(listed)
    for name, tool in listed.items():
        assert tool.description and tool.input_schema["type"] == "object" and tool.output_schema, name
    assert listed["file_read"].annotations.read_only_hint
    assert listed["sandbox_remove"].annotations.destructive_hint
    assert not listed["sandbox_create"].annotations.destructive_hint
    say("eleven tools, each described")


async def commands_run(tools, sandbox):
    done = await tools.ok("sandbox_run", sandbox=sandbox, command="echo out; echo err >&2; echo $A; exit 3")
    assert (done["stdout"], done["stderr"], done["exit_code"]) == ("out\nkept\n", "err\n", 3), done
    assert done["cut_bytes"] == 0 and not done["timed_out"] and done["signal"] is None
    done = await tools.ok(
        "sandbox_run", sandbox=sandbox, argv=["sh", "-c", 'cat; pwd; id -un; echo "$B"'], stdin="fed ", cwd="/tmp",
        user="user", env={"B": "two words"},
    )
    assert done["stdout"] == "fed /tmp\nuser\ntwo words\n", done
    say("commands: streams, exit code, input, user, directory, environment")

    loud = r"printf BEGIN; head -c 400000 /dev/zero | tr '\0' x; printf 'END\377\033[2J'"
    done = await tools.ok("sandbox_run", sandbox=sandbox, argv=["bash", "-c", loud])
    assert done["stdout_bytes"] == 400013 and done["cut_bytes"] == 400013 - 2 * 65536, done["cut_bytes"]
    assert len(done["stdout"]) < 2 * 65536 + 200 and f"[... {done['cut_bytes']} bytes cut here ...]" in done["stdout"]
    assert done["stdout"].startswith("BEGINx") and done["stdout"].endswith("xEND\ufffd\\u{1b}[2J"), done["stdout"][-40:]
    say("large output is cut, reports that, and is text")

    done = await tools.ok("sandbox_run", sandbox=sandbox, argv=["sleep", "100"], timeout_seconds=1)
    assert done["timed_out"] and done["exit_code"] == 124, done
    await tools.refused("sandbox_run", "no-such-program", sandbox=sandbox, argv=["no-such-program"])
    await tools.refused("sandbox_run", "either command or argv", sandbox=sandbox)
    say("commands end at their timeout, and invalid ones are refused")


async def files_work(tools, sandbox):
    written = await tools.ok("file_write", sandbox=sandbox, path="/srv/a/text", content="grüße\n" * 3, mode="600")
    assert (written["size"], written["permissions"], written["owner"]) == (24, "-rw-------", "root"), written
    read = await tools.ok("file_read", sandbox=sandbox, path="/srv/a/text")
    assert read == {"content": "grüße\n" * 3, "encoding": "text", "size": 24, "next_offset": None}, read
    # Byte 4 lies within a character, so the first part ends before that.
    part = await tools.ok("file_read", sandbox=sandbox, path="/srv/a/text", max_bytes=3)
    assert (part["content"], part["next_offset"]) == ("gr", 2), part
    rest = await tools.ok("file_read", sandbox=sandbox, path="/srv/a/text", offset=part["next_offset"])
    assert part["content"] + rest["content"] == read["content"] and rest["next_offset"] is None
    data = bytes(range(256))
    await tools.ok(
        "file_write", sandbox=sandbox, path="data", content=base64.b64encode(data).decode(), encoding="base64", user="user",
    )
    read = await tools.ok("file_read", sandbox=sandbox, path="/home/user/data")
    assert read["encoding"] == "base64" and base64.b64decode(read["content"]) == data
    listed = await tools.ok("file_list", sandbox=sandbox, path="/srv", depth=2)
    assert [(entry["path"], entry["kind"]) for entry in listed["entries"]] == [
        ("/srv/a", "directory"), ("/srv/a/text", "file"),
    ], listed
    await tools.refused("file_read", "/nowhere", sandbox=sandbox, path="/nowhere")
    await tools.refused("file_read", "/dev/zero", sandbox=sandbox, path="/dev/zero")
    await tools.refused("file_write", "mode", sandbox=sandbox, path="/x", content="", mode="rw")
    say("files: written, read in parts, listed, refused")

    # The user permits no network, and the sandbox has none.
    await tools.refused("sandbox_create", "the user permits no network", network={"reach": "public"})
    network = await tools.ok("sandbox_network", sandbox=sandbox)
    assert network == {
        "reach": "none", "allow": [], "deny": [], "permitted": "the user permits no network", "refused": [], "secrets": [],
    }, network
    say("network: none, and none is permitted")


async def others_are_out_of_reach(tools, foreign):
    for reference in (foreign, "foreign", foreign[:6]):
        await tools.refused("sandbox_run", "sandbox_list", sandbox=reference, argv=["true"])
        await tools.refused("file_read", "sandbox_list", sandbox=reference, path="/etc/passwd")
        await tools.refused("sandbox_reset", sandbox=reference)
        await tools.refused("sandbox_fork", sandbox=reference)
        await tools.refused("sandbox_snapshot", sandbox=reference, name="stolen")
        await tools.refused("sandbox_remove", sandbox=reference)
        await tools.refused("sandbox_network", "sandbox_list", sandbox=reference)
    await tools.refused("sandbox_create", "theirs", snapshot="theirs")
    assert foreign not in json.dumps(await tools.ok("sandbox_list"))
    say("sandboxes and snapshots of others cannot be reached")


async def copies_go_their_own_ways(tools, sandbox):
    await tools.ok("sandbox_snapshot", sandbox=sandbox, name="before")
    await tools.refused("sandbox_snapshot", "before", sandbox=sandbox, name="before")
    await tools.ok("file_write", sandbox=sandbox, path="/srv/after", content="x")
    [copy] = (await tools.ok("sandbox_fork", sandbox=sandbox))["copies"]
    assert copy["state"] == "running" and copy["made_here"]
    await tools.ok("sandbox_reset", sandbox=sandbox, snapshot="before")
    await tools.refused("file_read", sandbox=sandbox, path="/srv/after")
    assert (await tools.ok("file_read", sandbox=copy["id"], path="/srv/after"))["content"] == "x"
    made = await tools.ok("sandbox_create", snapshot="before")
    assert (await tools.ok("file_read", sandbox=made["id"], path="/srv/a/text"))["size"] == 24
    await tools.refused("sandbox_create", "sandbox_remove")
    assert (await tools.ok("sandbox_remove", sandbox=copy["id"])) == {"removed": copy["id"]}
    await tools.refused("sandbox_run", "sandbox_list", sandbox=copy["id"], argv=["true"])
    listed = await tools.ok("sandbox_list")
    assert {shown["id"] for shown in listed["sandboxes"]} == {sandbox, made["id"]}, listed
    assert listed["snapshots"] == ["before"]
    say("snapshot, fork, reset, remove; and the maximum number of sandboxes")


async def over_stdio(foreign):
    parameters = StdioServerParameters(command=PROGRAM, args=["mcp", "--max-sandboxes", "3"], env=ENVIRONMENT)
    # Uses the handshake of clients of 2025. Over HTTP both handshakes are used.
    async with Client(parameters, mode="legacy") as client:
        tools = Tools(client)
        await tools_are_described(tools)
        made = await tools.ok("sandbox_create", name="made", memory_mib=128, env={"A": "kept"}, ttl_seconds=900)
        assert (made["name"], made["state"], made["memory_mib"]) == ("made", "running", 128), made
        await tools.refused("sandbox_create", "memory_mib", memory_mib=1)
        await commands_run(tools, "made")
        await files_work(tools, made["id"])
        await others_are_out_of_reach(tools, foreign)
        await copies_go_their_own_ways(tools, made["id"])
    assert cli("ls", "-q") == foreign and cli("snapshot", "ls", "-q") == "theirs"
    say("the sandboxes and snapshots of a session end with it, and no others")


async def refuses_strangers(url):
    begin = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
    }
    ours = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient() as http:
        async def status(**headers):
            sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
            return (await http.post(url, json=begin, headers=sent)).status_code

        assert await status(**ours) == 200
        assert await status(**{**ours, "Authorization": None}) == 401
        assert await status(**{**ours, "Authorization": f"Bearer {TOKEN[:-1]}x"}) == 401
        assert await status(**ours, Host="attacker.example") == 403
        assert await status(**ours, Origin="http://attacker.example") == 403
        assert await status(**ours, Origin="http://localhost:6274") == 200
    say("HTTP: no token, another Host, another Origin are refused")


async def secrets_are_asked_for_by_name(tools):
    asked = {"allow": ["api.example"], "secrets": ["OTHER"]}
    await tools.refused("sandbox_create", 'no secret "OTHER"', "API_TOKEN for api.example", network=asked)
    await tools.refused("sandbox_create", "network.secrets", network={"secrets": ["API_TOKEN"]})
    made = await tools.ok("sandbox_create", memory_mib=128, network={**asked, "secrets": ["API_TOKEN"]})
    network = await tools.ok("sandbox_network", sandbox=made["id"])
    assert network["secrets"] == ["API_TOKEN for api.example"], network
    done = await tools.ok("sandbox_run", sandbox=made["id"], command="env; cat /proc/1/environ")
    assert "API_TOKEN=sandboxvm-secret-" in done["stdout"], done
    assert SECRET not in json.dumps([made, network, done])
    await tools.ok("sandbox_remove", sandbox=made["id"])
    say("secrets: asked for by name, and a placeholder in the sandbox")


async def over_http(foreign):
    environment = {**os.environ, "SANDBOXVM_MCP_TOKEN": TOKEN, "API_TOKEN": SECRET}
    server = subprocess.Popen(
        [
            PROGRAM, "mcp", "--http", "127.0.0.1:0", "--sandbox", "foreign", "--template", "theirs",
            "--allow", "api.example", "--secret", "API_TOKEN@api.example",
        ],
        env=environment, stderr=subprocess.PIPE, text=True,
    )
    try:
        line = server.stderr.readline()
        assert line.startswith("sandboxvm: serving MCP on http://127.0.0.1:"), line
        url = line.split()[-1]
        await refuses_strangers(url)
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300) as http:
            async with Client(streamable_http_client(url, http_client=http)) as client:
                tools = Tools(client)
                await tools_are_described(tools)
                done = await tools.ok("sandbox_run", sandbox="foreign", argv=["hostname"])
                assert done["stdout"] == "foreign\n", done
                await tools.refused("sandbox_remove", "cannot remove", sandbox="foreign")
                made = await tools.ok("sandbox_create", snapshot="theirs")
                await secrets_are_asked_for_by_name(tools)
            # Another client of the same server sees the same sandboxes.
            async with Client(streamable_http_client(url, http_client=http), mode="legacy") as client:
                listed = await Tools(client).ok("sandbox_list")
                assert {shown["id"]: shown["made_here"] for shown in listed["sandboxes"]} == {
                    made["id"]: True, foreign: False,
                }, listed
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, server.returncode
    finally:
        server.kill()
        server.wait()
    assert cli("ls", "-q") == foreign, cli("ls")
    say("HTTP: tools work, sandboxes outlive a client and end with the server")


def main():
    foreign = cli("create", "--name", "foreign", "-m", "128M")
    cli("snapshot", "create", "foreign", "theirs")
    say("a sandbox and a snapshot that the server may not reach")
    try:
        asyncio.run(over_stdio(foreign))
        asyncio.run(over_http(foreign))
    finally:
        for sandbox in cli("ls", "-q").split():
            cli("rm", "-f", sandbox)
        for snapshot in cli("snapshot", "ls", "-q").split():
            cli("snapshot", "rm", snapshot)
    say("passed")


if __name__ == "__main__":
    sys.exit(main())
