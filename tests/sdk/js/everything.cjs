// The JavaScript SDK: every kind of method once. Exit status 0 when all is as E2B has it.
'use strict'
const assert = require('node:assert/strict')
const { CommandExitError, FileNotFoundError, NotFoundError, Sandbox, SandboxNotFoundError, TimeoutError } = require('e2b')

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

    // Commands.
    let seen = ''
    const result = await sandbox.commands.run('echo "$A $B"; echo err >&2; whoami', {
      envs: { B: '2' },
      onStdout: (text) => { seen += text },
    })
    assert.equal(result.stdout, '1 2\nuser\n')
    assert.equal(result.stderr, 'err\n')
    assert.equal(seen, result.stdout)
    await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
    await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 1500 }), TimeoutError)
    const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
    await sandbox.commands.sendStdin(cat.pid, 'fed\n')
    await sandbox.commands.closeStdin(cat.pid)
    assert.equal((await cat.wait()).stdout, 'fed\n')
    const sleeping = await sandbox.commands.run('sleep 1000', { background: true })
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === sleeping.pid))
    await (await sandbox.commands.connect(sleeping.pid)).disconnect()
    assert.ok(await sandbox.commands.kill(sleeping.pid))

    // Files.
    await sandbox.files.write('d/a.txt', 'text')
    assert.equal(await sandbox.files.read('d/a.txt'), 'text')
    const bytes = new Uint8Array(300_000).map((_, index) => index % 251)
    await sandbox.files.write([
      { path: 'd/b.bin', data: bytes.buffer },
      { path: 'd/c.txt', data: new Blob(['blob']) },
    ])
    assert.deepEqual(await sandbox.files.read('d/b.bin', { format: 'bytes' }), bytes)
    assert.equal(await (await sandbox.files.read('d/c.txt', { format: 'blob' })).text(), 'blob')
    let streamed = 0
    for await (const chunk of await sandbox.files.read('d/b.bin', { format: 'stream' })) streamed += chunk.length
    assert.equal(streamed, bytes.length)
    const names = (await sandbox.files.list('d')).map((entry) => entry.name).sort()
    assert.deepEqual(names, ['a.txt', 'b.bin', 'c.txt'])
    assert.ok(await sandbox.files.makeDir('d/e'))
    assert.ok(!(await sandbox.files.makeDir('d/e')))
    assert.equal((await sandbox.files.rename('d/a.txt', 'd/z.txt')).name, 'z.txt')
    assert.equal((await sandbox.files.getInfo('d/z.txt')).size, 4)
    await assert.rejects(sandbox.files.read('d/a.txt'), (error) => error instanceof FileNotFoundError || error instanceof NotFoundError)

    // Watched directories.
    const events = []
    const watch = await sandbox.files.watchDir('d', (event) => events.push(event))
    await sandbox.files.write('d/new.txt', 'x')
    for (let n = 0; n < 100 && events.length === 0; n += 1) await new Promise((resolve) => setTimeout(resolve, 100))
    assert.ok(events.some((event) => event.name === 'new.txt'), JSON.stringify(events))
    await watch.stop()
    await sandbox.files.remove('d')
    assert.ok(!(await sandbox.files.exists('d')))

    // A terminal.
    let shown = ''
    const terminal = await sandbox.pty.create({
      cols: 80,
      rows: 24,
      onData: (data) => { shown += Buffer.from(data).toString() },
    })
    await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
    await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
    await terminal.wait().catch(() => {})
    assert.match(shown, /30 100/)

    // Snapshots, copies, pause.
    const snapshot = await sandbox.createSnapshot()
    const other = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 900_000 })
    made.push(other)
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
