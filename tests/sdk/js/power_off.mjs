// A guest that powers itself off or halts is not running afterwards. Exits with 0 if all is as with
// E2B.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

// node ignores NODE_PATH for modules: see commands_and_files.mjs.
const require = createRequire(pathToFileURL(`${process.env.E2B_JS ?? process.cwd()}/`))
const { Sandbox } = require('e2b')

// reboot(2): power off, halt.
for (const command of [0x4321fedc, 0xcdef0123]) {
  const sandbox = await Sandbox.create({ timeoutMs: 900_000 })
  assert.ok(await sandbox.isRunning())
  const waits = await sandbox.commands.run('sleep 600', { background: true })
  await sandbox.commands.run(`perl -e 'syscall(169, 0xfee1dead, 0x28121969, ${command}, 0)'`, { user: 'root', background: true })
  await assert.rejects(waits.wait())
  assert.ok(!(await sandbox.isRunning()))
  await sandbox.kill()
}
