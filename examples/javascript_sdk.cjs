// E2B's JavaScript client, unchanged, on sandboxvm.
'use strict'
const { Sandbox } = require('e2b')

async function main() {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  try {
    await sandbox.files.write('sum.py', 'import sys\nprint(sum(int(line) for line in sys.stdin))\n')
    const { stdout } = await sandbox.commands.run('seq 10 | python3 sum.py')
    console.log(`1 + ... + 10 = ${stdout.trim()}`)
    for (const entry of await sandbox.files.list('/home/user')) console.log(`${entry.type} ${entry.path}`)
  } finally {
    await sandbox.kill()
  }
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
