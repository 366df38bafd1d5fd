import Foundation

final class Queue: MTLCommandQueue {
    private let device: Device
    init(_ device: Device) { self.device = device }
    func makeCommandBuffer() -> (any MTLCommandBuffer)? { CommandBuffer(device) }
}

/// Dispatches are executed in their order when the buffer is committed, as on a device with one serial encoder.
final class CommandBuffer: MTLCommandBuffer {
    private let device: Device
    var dispatches: [() -> String?] = []  // each says what went wrong
    private(set) var status = MTLCommandBufferStatus.notEnqueued
    private(set) var error: (any Error)?

    init(_ device: Device) { self.device = device }

    func makeComputeCommandEncoder() -> (any MTLComputeCommandEncoder)? { Encoder(self, device) }

    func commit() {
        status = .completed
        for dispatch in dispatches {
            if let fault = dispatch() {
                (status, error) = (.error, failure(fault))
                break
            }
        }
        dispatches = []
    }

    func waitUntilCompleted() {
        precondition(status == .completed || status == .error, "waiting for a command buffer that was not committed")
    }
}

final class Encoder: MTLComputeCommandEncoder {
    /// What lies at one index: a buffer from an offset on, or a copy of some bytes.
    private struct Binding {
        let buffer: Buffer
        let offset: Int
    }

    private let target: CommandBuffer
    private let device: Device
    private var pipeline: Pipeline?
    private var bound: [Int: Binding] = [:]
    private var memory: [Int: Int] = [:]
    private var hasEnded = false

    init(_ target: CommandBuffer, _ device: Device) { (self.target, self.device) = (target, device) }

    func setComputePipelineState(_ state: any MTLComputePipelineState) { pipeline = state as? Pipeline }

    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int) {
        precondition(offset % 4 == 0, "offsets of buffers in device memory are multiples of 4")
        bound[index] = (buffer as? Buffer).map { Binding(buffer: $0, offset: offset) }
    }

    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int) {
        precondition(length <= 4096, "setBytes takes at most 4096 bytes")
        let copy = Buffer(length)
        copy.contents().copyMemory(from: bytes, byteCount: length)
        bound[index] = Binding(buffer: copy, offset: 0)
    }

    func setThreadgroupMemoryLength(_ length: Int, index: Int) {
        precondition(length % 16 == 0, "threadgroup memory comes in multiples of 16 bytes")
        memory[index] = length
    }

    func dispatchThreadgroups(_ groups: MTLSize, threadsPerThreadgroup threads: MTLSize) {
        precondition(!hasEnded, "the encoder has ended")
        guard let function = pipeline?.function else { preconditionFailure("no pipeline is set") }
        let (bound, memory, order, isChecked) = (bound, memory, device.order, device.isChecked)
        target.dispatches.append {
            Self.run(function, bound, memory, groups, threads, order: order, isChecked: isChecked)
        }
    }

    func endEncoding() { hasEnded = true }

    private static let faults = ["", "race", "bounds", "uninitialised", "divergence"]

    private static func run(
        _ function: Function, _ bound: [Int: Binding], _ memory: [Int: Int], _ groups: MTLSize, _ threads: MTLSize,
        order: UInt32, isChecked: Bool
    ) -> String? {
        let buffers = function.kernel.arguments.filter { ["buffer", "constant"].contains($0.role) }
        let shared = function.kernel.arguments.filter { $0.role == "threadgroup" }
        var addresses = [UnsafeMutableRawPointer?](repeating: nil, count: buffers.count)
        var sizes = [UInt64](repeating: 0, count: buffers.count)
        var lengths = [UInt64](repeating: 0, count: shared.count)
        for argument in buffers {
            guard let binding = bound[argument.index], binding.offset < binding.buffer.length else {
                return "\(function.name): nothing is bound to \(argument.name)"
            }
            addresses[argument.index] = binding.buffer.contents() + binding.offset
            sizes[argument.index] = UInt64(binding.buffer.length - binding.offset)
        }
        for argument in shared {
            guard let length = memory[argument.index] else { return "\(function.name): no length of \(argument.name)" }
            lengths[argument.index] = UInt64(length)
        }
        let count = threads.width * threads.height * threads.depth
        guard lengths.reduce(0, +) <= 32_768, (1...1024).contains(count) else {
            return "\(function.name): more than a threadgroup has: \(lengths) bytes, \(count) threads"
        }
        var launch = Launch(groups: groups, threads: threads, order: order, isChecked: isChecked)
        addresses.withUnsafeMutableBufferPointer { addresses in
            sizes.withUnsafeMutableBufferPointer { sizes in
                lengths.withUnsafeMutableBufferPointer { lengths in
                    (launch.buffers, launch.bufferBytes) = (addresses.baseAddress, sizes.baseAddress)
                    launch.memoryBytes = lengths.baseAddress
                    launch.bufferCount = UInt32(addresses.count)
                    launch.memoryCount = UInt32(lengths.count)
                    function.launcher(&launch)
                }
            }
        }
        let fault = faults[Int(launch.fault)]
        return fault.isEmpty ? nil : "\(function.name): \(fault), thread \(launch.threadA), byte \(launch.offset)"
    }
}

/// `Launch` of the harness's `runtime.h`, field by field.
private struct Launch {
    var buffers: UnsafeMutablePointer<UnsafeMutableRawPointer?>?
    var bufferBytes: UnsafeMutablePointer<UInt64>?
    var memoryBytes: UnsafeMutablePointer<UInt64>?
    var bufferCount: UInt32 = 0
    var memoryCount: UInt32 = 0
    var groups: (UInt32, UInt32, UInt32)
    var threads: (UInt32, UInt32, UInt32)
    var order: UInt32
    var checked: UInt32
    var seed: UInt64 = 0
    var fault: UInt32 = 0
    var space: UInt32 = 0
    var index: UInt32 = 0
    var threadA: UInt32 = 0
    var threadB: UInt32 = 0
    var isWrite: UInt32 = 0
    var offset: UInt64 = 0

    init(groups: MTLSize, threads: MTLSize, order: UInt32, isChecked: Bool) {
        self.groups = (UInt32(groups.width), UInt32(groups.height), UInt32(groups.depth))
        self.threads = (UInt32(threads.width), UInt32(threads.height), UInt32(threads.depth))
        (self.order, checked) = (order, isChecked ? 1 : 0)
    }
}
