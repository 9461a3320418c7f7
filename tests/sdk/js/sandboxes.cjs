// Sandboxes with the JavaScript client: create, connect, list, snapshot, fork, pause, kill. Exits
// with 0 if all is as with E2B.
'use strict'
const assert = require('node:assert/strict')
const { NotFoundError, Sandbox, SandboxNotFoundError } = require('e2b')

async function main() {
  const made = []
  try {
    const sandbox = await Sandbox.create({ timeoutMs: 900_000, metadata: { a: 'js' }, envs: { A: '1' } })
    made.push(sandbox)
    assert.ok(await sandbox.isRunning())
    const info = await sandbox.getInfo()
    assert.equal(info.sandboxId, sandbox.sandboxId)
    assert.deepEqual(info.metadata, { a: 'js' })
    assert.equal(info.state, 'running')

    // Snapshots, copies, pause.
    await sandbox.files.write('/home/user/state', '1')
    const snapshot = await sandbox.createSnapshot()
    const other = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 900_000 })
    made.push(other)
    assert.equal(await other.files.read('/home/user/state'), '1')
    assert.ok(await Sandbox.deleteSnapshot(snapshot.snapshotId))
    const [copy] = await sandbox.fork({ timeoutMs: 900_000 })
    made.push(copy)
    assert.deepEqual((await copy.getInfo()).metadata, { a: 'js' })
    await copy.pause()
    assert.ok(!(await copy.isRunning()))
    const again = await Sandbox.connect(copy.sandboxId, { timeoutMs: 900_000 })
    assert.ok(await again.isRunning())
    const pages = Sandbox.list({ limit: 1 })
    const found = []
    while (pages.hasNext) found.push(...(await pages.nextItems()).map((one) => one.sandboxId))
    assert.deepEqual(found.sort(), made.map((one) => one.sandboxId).sort())
    await sandbox.setTimeout(600_000)
    assert.ok((await sandbox.getMetrics()).length > 0)
    await assert.rejects(Sandbox.connect('aaaaaaaaaaaaaaaa'), (error) => error instanceof SandboxNotFoundError || error instanceof NotFoundError)
    await assert.rejects(Sandbox.create('no-such-template'), /not found/)
  } finally {
    for (const one of made) assert.ok(await one.kill())
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error)
    process.exit(1)
  },
)
