// Volumes: every call of the client, and a volume in a sandbox. Exits with 0 if all is as with E2B.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'

const require = createRequire(process.env.E2B_JS + '/')
const { Sandbox, Volume, VolumeError, VolumeNotFoundError, VolumePathNotFoundError } = require('e2b')

const volume = await Volume.create('js-data')
try {
  assert.equal(volume.name, 'js-data')
  assert.deepEqual(await Volume.list(), [{ volumeId: volume.volumeId, name: 'js-data' }])
  assert.equal((await Volume.getInfo(volume.volumeId)).token, volume.token)
  await assert.rejects(Volume.getInfo('0123456789abcdef0123'), VolumeNotFoundError)
  await assert.rejects(Volume.create('js-data'), VolumeError)
  const connected = await Volume.connect(volume.volumeId)

  const written = await connected.writeFile('dir/a.txt', 'text', { uid: 5, gid: 6, mode: 0o600, force: true })
  assert.equal(written.path, '/dir/a.txt')
  assert.deepEqual([written.type, written.size, written.uid, written.gid, written.mode], ['file', 4, 5, 6, 0o600])
  assert.ok(Math.abs(written.mtime.getTime() - Date.now()) < 600_000)
  assert.equal(await volume.readFile('dir/a.txt'), 'text')
  const bytes = new Uint8Array(300_000).fill(7)
  const stream = new ReadableStream({
    start(controller) {
      controller.enqueue(bytes)
      controller.close()
    },
  })
  await volume.writeFile('stream', stream)
  assert.deepEqual(await volume.readFile('stream', { format: 'bytes' }), bytes)
  assert.equal((await volume.readFile('stream', { format: 'blob' })).size, bytes.length)
  let length = 0
  for await (const piece of await volume.readFile('stream', { format: 'stream' })) length += piece.length
  assert.equal(length, bytes.length)
  await assert.rejects(volume.readFile('missing'), VolumePathNotFoundError)
  await assert.rejects(volume.readFile('missing', { format: 'stream' }), VolumePathNotFoundError)
  await assert.rejects(volume.readFile('../../etc/passwd'), VolumeError)

  assert.equal((await volume.makeDir('made', { mode: 0o711 })).mode, 0o711)
  assert.equal((await volume.updateMetadata('made', { uid: 9 })).uid, 9)
  assert.deepEqual((await volume.list('/')).map((entry) => entry.name), ['dir', 'made', 'stream'])
  assert.deepEqual((await volume.list('/', { depth: 2 })).length, 4)
  assert.equal((await volume.getInfo('made')).type, 'directory')
  assert.equal(await volume.exists('made'), true)
  await volume.remove('made')
  assert.equal(await volume.exists('made'), false)

  const sandbox = await Sandbox.create({ volumeMounts: { '/data': volume }, timeoutMs: 300_000 })
  try {
    assert.deepEqual((await sandbox.getInfo()).volumeMounts, [{ name: 'js-data', path: '/data' }])
    assert.equal(await sandbox.files.read('/data/dir/a.txt'), 'text')
    await sandbox.files.write('/data/from-sandbox', 'yes')
    assert.equal(await volume.readFile('from-sandbox'), 'yes')
    await assert.rejects(Volume.destroy(volume.volumeId), VolumeError)
  } finally {
    await sandbox.kill()
  }
} finally {
  assert.equal(await Volume.destroy(volume.volumeId), true)
}
assert.equal(await Volume.destroy(volume.volumeId), false)
