"""Templates: build with uploads and a start command, create from them by name, tag and build, rebuild from the
cache, failed steps, tags, deletion. Exits with 0 if all is as with E2B."""

import os
import tempfile
import urllib.request

from e2b import BuildException, Sandbox, SandboxException, Template
from expect import raises

context = tempfile.mkdtemp()
with open(os.path.join(context, "hello.txt"), "w") as file:
    file.write("hello\n")
os.mkdir(os.path.join(context, "lib"))
with open(os.path.join(context, "lib", "part.txt"), "w") as file:
    file.write("part\n")


def base():
    builder = Template(file_context_path=context)
    image = os.environ.get("TEMPLATE_IMAGE")
    return builder.from_image(image) if image else builder.from_template("base")


def steps():
    return (
        base()
        .copy("hello.txt", "/opt/app/")
        .copy("lib", "/opt/app/lib", user="root", mode=0o640)
        .set_envs({"MODE": "test"})
        .set_envs({"PLACE": "$MODE/1"})
        .set_workdir("/opt/app")
        .run_cmd("cat hello.txt > /tmp/seen && echo \"$PLACE $(id -un)\" >> /tmp/seen && echo out && echo err >&2")
    )


def build(template, name):
    lines = []
    built = Template.build(template, name, memory_mb=256, cpu_count=1, on_build_logs=lambda line: lines.append(line.message))
    return built, lines


made = []
try:
    template = steps().set_start_cmd("echo $$ > /tmp/started; exec sleep 1000000", "test -s /tmp/started")
    built, lines = build(template, "mine:v1")
    assert built.tags == ["v1"] and "out" in lines and "err" in lines, (built, lines)
    assert not any(line.startswith("CACHED") for line in lines), lines

    sandbox = Sandbox.create("mine:v1", timeout=600, envs={"MODE": "stated"})
    made.append(sandbox)
    seen = sandbox.commands.run(
        "cat /tmp/seen; pwd; echo $MODE $PLACE; id -un; stat -c '%a %U' lib/part.txt hello.txt;"
        " kill -0 $(cat /tmp/started) && echo runs"
    )
    expected = "hello\ntest/1 user\n/opt/app\nstated test/1\nuser\n640 root\n644 user\nruns\n"
    assert seen.stdout == expected, seen
    assert sandbox.get_info().template_id == built.template_id
    for name in [built.template_id, f"mine:{built.build_id}"]:
        made.append(Sandbox.create(name, timeout=600))
        assert made[-1].get_info().template_id == built.template_id

    # The same steps again: nothing is executed. A build without a tag is `default`.
    again, lines = build(steps(), "mine")
    assert again.template_id == built.template_id and again.build_id != built.build_id
    assert len([line for line in lines if line.startswith("CACHED")]) >= 5 and "out" not in lines, lines

    # A step that fails is named, with its output.
    broken = steps().run_cmd("echo reason >&2; exit 3")
    error = raises(BuildException, lambda: build(broken, "mine:broken"))
    assert "exited with code 3" in str(error), error
    raises(SandboxException, lambda: Sandbox.create("mine:broken"))

    # Tags.
    tagged = Template.assign_tags("mine:v1", ["stable", "prod"])
    assert str(tagged.build_id) == built.build_id and tagged.tags == ["stable", "prod"], tagged
    assert {tag.tag for tag in Template.get_tags("mine")} == {"v1", "default", "stable", "prod"}
    Template.remove_tags("mine", ["prod"])
    assert {tag.tag for tag in Template.get_tags(built.template_id)} == {"v1", "default", "stable"}
    assert Template.exists("mine") and not Template.exists("other")
    error = raises(SandboxException, lambda: Sandbox.create("mine:prod"))
    assert "was not found" in str(error), error

    # Deletion, for which the client has no call. Its sandboxes live on.
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/templates/{built.template_id}",
        method="DELETE",
        headers={"X-API-Key": os.environ["E2B_API_KEY"]},
    )
    assert urllib.request.urlopen(request).status == 204
    assert not Template.exists("mine") and made[0].is_running()
finally:
    for sandbox in made:
        sandbox.kill()
print("templates: all as expected")
