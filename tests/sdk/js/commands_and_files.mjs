// Commands, files, terminals and watches with the JavaScript client. Exits with 0 if all is as with
// E2B. node must find the package `e2b`. It ignores NODE_PATH for modules, so E2B_JS names the
// directory that has node_modules if that is not above this file.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const require = createRequire(pathToFileURL(`${process.env.E2B_JS ?? process.cwd()}/`))
const {
  Sandbox, CommandExitError, TimeoutError, NotFoundError, FileNotFoundError, InvalidArgumentError, AuthenticationError,
  FilesystemEventType, SandboxNotFoundError,
} = require('e2b')

const until = async (what, done) => {
  for (let tries = 0; tries < 600; tries++) {
    if (await done()) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  assert.fail(`${what} did not come`)
}

const sandbox = await Sandbox.create({ timeoutMs: 900_000, envs: { OF_SANDBOX: 's' } })
try {
  // Commands.
  let seen = ''
  const result = await sandbox.commands.run('echo out; echo err >&2; echo $OF_SANDBOX$OF_COMMAND; pwd', {
    envs: { OF_COMMAND: 'c' }, cwd: '/tmp', user: 'root', onStdout: (text) => { seen += text },
  })
  assert.deepEqual([result.exitCode, result.stdout, result.stderr], [0, 'out\nsc\n/tmp\n', 'err\n'])
  assert.equal(seen, result.stdout)
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
  await assert.rejects(sandbox.commands.run('sleep 600', { timeoutMs: 4000 }), TimeoutError)
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-of-that-name' }), (error) =>
    error instanceof AuthenticationError && error.message.includes("invalid username: 'nobody-of-that-name'"))
  const cat = await sandbox.commands.run('cat; echo over', { background: true, stdin: true })
  // The guest's timeout of the command above began after the client's, so the command may still
  // run.
  await until('the end of sleep', async () => (await sandbox.commands.list()).length === 1)
  assert.deepEqual((await sandbox.commands.list()).map((one) => [one.pid, one.args.at(-1)]), [[cat.pid, 'cat; echo over']])
  await sandbox.commands.sendStdin(cat.pid, 'one\n')
  await until('its echo', () => cat.stdout === 'one\n')
  await cat.disconnect()
  const again = await sandbox.commands.connect(cat.pid)
  await sandbox.commands.sendStdin(cat.pid, 'two\n')
  await sandbox.commands.closeStdin(cat.pid)
  assert.ok((await again.wait()).stdout.endsWith('two\nover\n'))
  assert.equal(await sandbox.commands.kill(999999), false)
  await assert.rejects(sandbox.commands.connect(999999), NotFoundError)

  // Files.
  const written = await sandbox.files.write('a.txt', 'größe')
  assert.deepEqual([written.name, written.path, written.type], ['a.txt', '/home/user/a.txt', 'file'])
  assert.equal(await sandbox.files.read('a.txt'), 'größe')
  const noise = new Uint8Array(300_000).map((_, at) => (at * 7919) >> 5)
  await sandbox.files.write('deep/noise', noise.buffer)
  assert.deepEqual(await sandbox.files.read('deep/noise', { format: 'bytes' }), noise)
  await sandbox.files.write('streamed', new Blob([noise]).stream())
  assert.deepEqual(new Uint8Array(await (await sandbox.files.read('streamed', { format: 'blob' })).arrayBuffer()), noise)
  await sandbox.files.write('packed', 'x'.repeat(100_000), { gzip: true })
  assert.equal(await sandbox.files.read('packed', { gzip: true }), 'x'.repeat(100_000))
  await sandbox.files.write('empty', '')
  assert.equal(await sandbox.files.read('empty'), '')
  const both = await sandbox.files.write([{ path: '/tmp/one', data: '1' }, { path: 'sub/two', data: '2' }])
  assert.deepEqual(both.map((one) => one.path), ['/tmp/one', '/home/user/sub/two'])
  const info = await sandbox.files.getInfo('deep/noise')
  assert.deepEqual([info.size, info.permissions, info.owner, info.modifiedTime instanceof Date], [300_000, '-rw-r--r--', 'user', true])
  assert.deepEqual((await sandbox.files.list('deep')).map((one) => [one.name, one.type]), [['noise', 'file']])
  assert.deepEqual([await sandbox.files.exists('a.txt'), await sandbox.files.exists('none')], [true, false])
  assert.deepEqual([await sandbox.files.makeDir('made'), await sandbox.files.makeDir('made')], [true, false])
  assert.equal((await sandbox.files.rename('a.txt', 'made/b.txt')).path, '/home/user/made/b.txt')
  await sandbox.files.remove('deep')
  const make = 'mkdir links && ln -s ../made links/directory && ln -s ../empty links/file && ln -s none links/nowhere'
  await sandbox.commands.run(make, { timeoutMs: 0 })
  const links = (await sandbox.files.list('links')).map((one) => [one.name, one.type, one.symlinkTarget])
  assert.deepEqual(links, [['directory', 'dir', '/home/user/made'], ['file', 'file', '/home/user/empty']])
  // A broken link has no type, and clients omit it from lists.
  const nowhere = await sandbox.files.getInfo('links/nowhere')
  assert.deepEqual([nowhere.type, nowhere.symlinkTarget], [undefined, '/home/user/links/nowhere'])
  const tagged = await sandbox.files.write('tagged', 'x', { metadata: { Author: 'me' } })
  assert.deepEqual(tagged.metadata, { author: 'me' })
  assert.deepEqual((await sandbox.files.getInfo('tagged')).metadata, { author: 'me' })
  assert.deepEqual((await sandbox.files.list('')).find((one) => one.name === 'tagged').metadata, { author: 'me' })
  assert.equal((await sandbox.files.write('tagged', 'y')).metadata, undefined)
  await assert.rejects(sandbox.files.write('tagged', 'z', { metadata: { k: 'x'.repeat(4096) } }), (error) =>
    error instanceof InvalidArgumentError && error.message.includes('total metadata size 4106 exceeds 4096 bytes'))
  await assert.rejects(sandbox.files.read('none'), FileNotFoundError)
  await assert.rejects(sandbox.files.list('made/b.txt'), InvalidArgumentError)
  // Only the address names the sandbox.
  const signed = await sandbox.downloadUrl('made/b.txt', { useSignatureExpiration: 60 })
  assert.equal(await (await fetch(signed)).text(), 'größe')
  const refused = async (url, message) => {
    const answer = await fetch(url)
    assert.deepEqual([answer.status, await answer.json()], [401, { code: 401, message }])
  }
  await refused(signed.replace('b.txt', 'c.txt'), 'invalid signature')
  await refused(await sandbox.downloadUrl('made/b.txt', { useSignatureExpiration: -5 }), 'signature is already expired')
  const form = new FormData()
  form.append('file', new Blob(['sent']), 'ignored')
  const upload = await fetch(await sandbox.uploadUrl('made/sent'), { method: 'POST', body: form })
  assert.equal((await upload.json())[0].path, '/home/user/made/sent')

  // A watched directory.
  const changes = []
  const watch = await sandbox.files.watchDir('made', (change) => changes.push(change), { includeEntry: true })
  await sandbox.files.write('made/new', 'x')
  await until('a change', () => changes.some((one) => one.type === FilesystemEventType.WRITE))
  assert.deepEqual(changes.map((one) => [one.name, one.type, one.entry.path, one.entry.size]), [
    ['new', FilesystemEventType.CREATE, '/home/user/made/new', 1], ['new', FilesystemEventType.WRITE, '/home/user/made/new', 1],
  ])
  await watch.stop()
  await (await sandbox.files.watchDir('made', () => {}, { allowNetworkMounts: true })).stop()

  // A terminal.
  let screen = ''
  const pty = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => { screen += Buffer.from(data) }, timeoutMs: 0 })
  await sandbox.pty.resize(pty.pid, { cols: 100, rows: 30 })
  await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('stty size; exit 7\n'))
  await assert.rejects(pty.wait(), (error) => error instanceof CommandExitError && error.exitCode === 7)
  assert.match(screen, /30 100/)

  // A sandbox that ends meanwhile.
  const running = await sandbox.commands.run('sleep 600', { background: true })
  await sandbox.kill()
  await assert.rejects(running.wait(), (error) => error instanceof TimeoutError &&
    error.message.endsWith('The sandbox was killed or reached its end of life while the request was in flight.'))
  // The client's own error if a process cannot be started because the sandbox is unavailable.
  await assert.rejects(sandbox.commands.run('true'), SandboxNotFoundError)
} finally {
  await sandbox.kill()
}
console.log('all: passed')
