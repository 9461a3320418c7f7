"""The client's git helpers, with a repository in the sandbox. Exits with 0 if all is as with
E2B."""

from e2b import Sandbox

sandbox = Sandbox.create(timeout=900)
try:
    git = sandbox.git
    git.init("work", initial_branch="main")
    git.configure_user("A User", "user@example.test")
    sandbox.files.write("work/a.txt", "one\n")
    status = git.status("work")
    assert status.current_branch == "main" and [file.name for file in status.file_status] == ["a.txt"], status
    git.add("work")
    git.commit("work", "first")
    git.create_branch("work", "other")
    assert set(git.branches("work").branches) == {"main", "other"}, git.branches("work")
    git.clone("/home/user/work", path="copy")
    assert sandbox.files.read("copy/a.txt") == "one\n"
finally:
    sandbox.kill()
print("git: passed")
