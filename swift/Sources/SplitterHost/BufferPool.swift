import Metal

/// Buffers of the GPU that are used again: one that nobody holds any more serves the next request of its length.
///
/// Kernels of one run are executed in the order in which they are encoded, so a buffer may be written anew as soon as
/// the last kernel that reads it has been encoded.
final class BufferPool {
    private let device: any MTLDevice
    private var free: [Int: [any MTLBuffer]] = [:]

    init(_ device: any MTLDevice) { self.device = device }

    /// A buffer of some bytes, which goes back when the lease ends.
    func lease(_ length: Int) -> Lease? {
        let buffer = free[length]?.popLast() ?? device.makeBuffer(length: length, options: .storageModeShared)
        return buffer.map { Lease($0, self) }
    }

    final class Lease {
        let buffer: any MTLBuffer
        private let pool: BufferPool

        fileprivate init(_ buffer: any MTLBuffer, _ pool: BufferPool) { (self.buffer, self.pool) = (buffer, pool) }

        deinit { pool.free[buffer.length, default: []].append(buffer) }
    }
}
