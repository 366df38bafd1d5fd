import Foundation
import Metal
import SplitterBundle

/// The cross-domain transformer through the Metal kernels. An actor: one run at a time uses its buffers.
public actor MetalTransformer: Segment {
    private let record: TransformerRecord
    private let queue: any MTLCommandQueue
    private let kernels: KernelLibrary
    private let pool: BufferPool
    private let storage: KernelStorage
    private let weights: [String: PlacedWeight]
    private let file: TransformerWeights  // stays mapped

    /// Map the weights and compile the kernels. Matrices that do not lie in the file as the kernels take them are
    /// decoded once, here.
    ///
    /// - Parameter storage: `half` holds activations and matrices in half precision, and takes half the memory.
    /// - Throws: `HostError.bundle`; `HostError.segment` if there is no device.
    public init(
        _ bundle: BundleReader, _ segment: SegmentRecord, storage: KernelStorage = .float
    ) throws(HostError) {
        guard let device = MTLCreateSystemDefaultDevice(), let queue = device.makeCommandQueue() else {
            throw .segment(
                invariant: "the transformer needs a Metal device", received: "none",
                fix: "Use a device with a GPU, or build the transformer for Core ML.")
        }
        file = try TransformerWeights(bundle, segment)
        record = file.record
        for (name, isTime) in zip(record.inputs + record.outputs, [false, true, false, true]) {
            let shape = bundle.tensors[name]?.shape ?? []
            let tokens = isTime ? record.config.timeTokens : record.config.freqTokens
            guard shape.count == (isTime ? 3 : 4), shape[0] == 1, shape[1] == record.config.width,
                shape.dropFirst(2).reduce(1, *) == tokens
            else {
                throw .bundle(
                    invariant: "\(name) must hold \(tokens) tokens of \(record.config.width) channels",
                    received: "\(shape)", fix: "Build the bundle again.")
            }
        }
        self.queue = queue
        self.storage = storage
        kernels = try KernelLibrary(device, storage)
        pool = BufferPool(device)
        weights = try PlacedWeight.all(file, storage, on: device)
    }

    public func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] { try run(inputs, observe: nil) }

    /// Run all layers of both branches.
    ///
    /// - Parameters:
    ///   - inputs: `b c f t` and `b c t`, by name.
    ///   - observe: Shown every tap of `splitter_kernels/taps.py` as it is computed. Watching takes a few dispatches
    ///     more and changes no bit of the result.
    /// - Throws: `HostError.segment` with what Metal says.
    func run(_ inputs: [String: Tensor], observe: ((String, Tensor) -> Void)?) throws -> [String: Tensor] {
        guard let freq = inputs[record.inputs[0]], let time = inputs[record.inputs[1]] else {
            return [:]  // the orchestrator names what is missing
        }
        let pass = TransformerPass(record.config, weights, kernels, queue, pool, storage, observe)
        let (freqResult, timeResult) = try pass.run(freq, time)
        return [record.outputs[0]: freqResult, record.outputs[1]: timeResult]
    }
}

/// Where a parameter lies for the GPU.
struct PlacedWeight {
    let buffer: any MTLBuffer
    let offset: Int
    /// Bytes of an element.
    var width = 4

    /// The parameter from a number of elements on.
    func advanced(by count: Int) -> PlacedWeight {
        PlacedWeight(buffer: buffer, offset: offset + width * count, width: width)
    }

    /// Every parameter: in the mapped file as it lies there, or decoded into a buffer of its own.
    static func all(
        _ file: TransformerWeights, _ storage: KernelStorage, on device: any MTLDevice
    ) throws(HostError) -> [String: PlacedWeight] {
        let page = Int(getpagesize())
        let length = (file.file.bytes.count + page - 1) / page * page  // a mapping ends with its page
        guard let address = file.file.bytes.baseAddress,
            let mapped = device.makeBuffer(
                bytesNoCopy: UnsafeMutableRawPointer(mutating: address), length: length, options: .storageModeShared,
                deallocator: nil)
        else {
            throw .segment(
                invariant: "Metal must take the mapped weights", received: "none of \(length) bytes",
                fix: "Free memory.")
        }
        var placed: [String: PlacedWeight] = [:]
        for (name, shape) in parameters(file.record.config) {
            let stored = storedNames(name, shape, file)
            let isMatrix = shape.count == 2 && !name.hasPrefix("positions")
            let width = isMatrix ? storage.width : 4
            if let offset = file.offset(name, shape: shape, dtype: width == 2 ? "float16" : "float32") {
                placed[name] = PlacedWeight(buffer: mapped, offset: offset, width: width)
                continue
            }
            var values: [Float] = []
            for part in stored {
                values += try file.values(part, shape: [shape[0] / stored.count] + shape.dropFirst())
            }
            let length = width * values.count
            guard
                let buffer = width == 2
                    ? device.makeBuffer(bytes: values.map(Float16.init), length: length, options: .storageModeShared)
                    : device.makeBuffer(bytes: values, length: length, options: .storageModeShared)
            else {
                throw .segment(
                    invariant: "Metal must hold \(name)", received: "no buffer of \(length) bytes",
                    fix: "Free memory.")
            }
            placed[name] = PlacedWeight(buffer: buffer, offset: 0, width: width)
        }
        return placed
    }

    /// The names under which a file has a parameter: its own, or those of the three parts of an input projection.
    private static func storedNames(_ name: String, _ shape: [Int], _ file: TransformerWeights) -> [String] {
        guard !file.has(name), let range = name.range(of: "in_proj_") else { return [name] }
        for projections in [["q_proj", "k_proj", "v_proj"], ["query_proj", "key_proj", "value_proj"]] {
            let names = projections.map { "\(name[..<range.lowerBound])\($0).\(name[range.upperBound...])" }
            if names.allSatisfy(file.has) { return names }
        }
        return [name]
    }

    /// Shape of every parameter, as `splitter_kernels/spec.py` has them.
    private static func parameters(_ config: TransformerConfig) -> [(name: String, shape: [Int])] {
        let (c, h) = (config.width, config.hidden)
        var tree: [(name: String, shape: [Int])] = []
        func affine(_ name: String) {
            tree.append(("\(name).weight", [c]))
            tree.append(("\(name).bias", [c]))
        }
        func map(_ weight: String, _ bias: String, _ outputs: Int, _ inputs: Int) {
            tree.append((weight, [outputs, inputs]))
            tree.append((bias, [outputs]))
        }
        for branch in ["", "_t"] {
            tree.append(("positions\(branch)", [branch.isEmpty ? config.freqTokens : config.timeTokens, c]))
            affine("norm_in\(branch)")
            for layer in 0..<config.layers {
                let (path, isCross) = ("layers\(branch).\(layer)", config.isCross(layer: layer))
                let attention = "\(path).\(isCross ? "cross" : "self")_attn"
                for norm in ["norm1", "norm2", "norm_out"] + (isCross ? ["norm3"] : []) {
                    affine("\(path).\(norm)")
                }
                map("\(attention).in_proj_weight", "\(attention).in_proj_bias", 3 * c, c)
                map("\(attention).out_proj.weight", "\(attention).out_proj.bias", c, c)
                map("\(path).linear1.weight", "\(path).linear1.bias", h, c)
                map("\(path).linear2.weight", "\(path).linear2.bias", c, h)
                tree.append(("\(path).gamma_1.scale", [c]))
                tree.append(("\(path).gamma_2.scale", [c]))
            }
        }
        return tree
    }
}
