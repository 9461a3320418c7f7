"""E2B's Python client, unchanged, on sandboxvm: commands, files, a server in the background and its port."""

import time
import urllib.error
import urllib.request

from e2b import CommandExitException, Sandbox

with Sandbox.create(timeout=300, metadata={"purpose": "example"}, envs={"GREETING": "hello"}) as sandbox:
    print(sandbox.commands.run('echo "$GREETING from $(uname -sr)"').stdout, end="")

    sandbox.files.write("/home/user/site/index.html", "<h1>out of a microVM</h1>")
    server = sandbox.commands.run("python3 -m http.server 8000 --directory site", background=True, timeout=0)

    # With a domain for the server, `sandbox.get_host(8000)` is the name of this port. The headers work without one.
    request = urllib.request.Request(
        sandbox.connection_config.get_sandbox_url(sandbox.sandbox_id, sandbox.sandbox_domain) + "/",
        headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"},
    )
    while True:
        try:
            with urllib.request.urlopen(request) as answer:
                print(answer.read().decode())
            break
        except urllib.error.HTTPError as error:
            if error.code != 502:
                raise
            time.sleep(0.5)  # the server does not listen yet
    server.kill()

    try:
        sandbox.commands.run("rm /etc/passwd /etc/shadow; exit 3", user="root")
    except CommandExitException as error:
        print(f"the command ended with {error.exit_code}; no other sandbox was affected")
