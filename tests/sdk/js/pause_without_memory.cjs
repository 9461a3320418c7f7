// Pause without memory with the JavaScript client: files stay, processes end, and the machine
// boots. Exits with 0 if all is as with E2B.
'use strict'
const assert = require('node:assert/strict')
const { Sandbox } = require('e2b')

async function main() {
  const lifecycle = { onTimeout: { action: 'pause', keepMemory: false } }
  const sandbox = await Sandbox.create({ timeoutMs: 3_000_000, lifecycle })
  try {
    await sandbox.files.write('/home/user/state', '1')
    await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
    const sleeps = async (one) =>
      (await one.commands.list()).some((process) => process.args.some((argument) => argument.includes('sleep 1000')))
    assert.ok(await sleeps(sandbox))
    // Pause at expiry, as requested at the creation.
    await sandbox.setTimeout(0)
    while ((await sandbox.getInfo()).state !== 'paused') await new Promise((resolve) => setTimeout(resolve, 200))
    assert.ok(!(await sandbox.isRunning()))
    const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 3_000_000, requestTimeoutMs: 600_000 })
    assert.equal(await again.files.read('/home/user/state'), '1')
    assert.ok(!(await sleeps(again)))

    // Pause by a call.
    assert.ok(await again.pause({ keepMemory: false }))
    assert.ok(!(await again.pause({ keepMemory: false })))
    const third = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 3_000_000, requestTimeoutMs: 600_000 })
    assert.equal(await third.files.read('/home/user/state'), '1')
  } finally {
    await sandbox.kill()
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error)
    process.exit(1)
  },
)
