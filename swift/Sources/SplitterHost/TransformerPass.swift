import Foundation
import Metal
import SplitterBundle

/// One forward pass: what every sub-step needs, bound together. The host code of each kernel is that of
/// `splitter_kernels/metal/steps.py`, the order of the steps that of `transformer.py` beside it.
final class TransformerPass {
    /// Values on the GPU: `rows` tokens of `columns` channels.
    struct Tokens {
        let lease: BufferPool.Lease
        let storage: KernelStorage
        let rows: Int
        let columns: Int
        var count: Int { rows * columns }
    }

    private enum Argument {
        case buffer(any MTLBuffer, offset: Int)
        case uint(Int)
        case float(Float)

        static func tokens(_ tokens: Tokens) -> Argument { .buffer(tokens.lease.buffer, offset: 0) }
        static func weight(_ weight: PlacedWeight) -> Argument { .buffer(weight.buffer, offset: weight.offset) }
    }

    private static let lanes = 32  // threads that share a token
    private static let momentLanes = 256  // threads of the one threadgroup that sums over tokens
    private static let each = 256  // threads of a group where every element has one of its own
    private static let logitRows = 16  // query rows of the logits that are observed
    private static let branches = ["", "_t"]

    private let config: TransformerConfig
    private let weights: [String: PlacedWeight]
    private let kernels: KernelLibrary
    private let queue: any MTLCommandQueue
    private let pool: BufferPool
    private let storage: KernelStorage
    private let observe: ((String, Tensor) -> Void)?
    private var open: (buffer: any MTLCommandBuffer, encoder: any MTLComputeCommandEncoder)?

    init(
        _ config: TransformerConfig, _ weights: [String: PlacedWeight], _ kernels: KernelLibrary,
        _ queue: any MTLCommandQueue, _ pool: BufferPool, _ storage: KernelStorage,
        _ observe: ((String, Tensor) -> Void)?
    ) {
        (self.config, self.weights, self.kernels, self.queue) = (config, weights, kernels, queue)
        (self.pool, self.storage, self.observe) = (pool, storage, observe)
    }

    /// Both branches: `b c f t` and `b c t`.
    func run(_ freq: Tensor, _ time: Tensor) throws(HostError) -> (Tensor, Tensor) {
        // The time branch is a frequency branch of one bin.
        let bins = [freq.shape[2], 1]
        var tokens: [Tokens] = []
        for (index, boundary) in [freq, time].enumerated() {
            tokens.append(try embedded(Self.branches[index], boundary, bins: bins[index]))
        }
        for layer in 0..<config.layers {
            let old = tokens
            for (index, branch) in Self.branches.enumerated() {
                let sources = config.isCross(layer: layer) ? old[1 - index] : nil
                tokens[index] = try self.layer("layers\(branch).\(layer)", old[index], sources)
            }
        }
        var results: [Tensor] = []
        for (index, boundary) in [freq, time].enumerated() {
            let branch = Self.branches[index]
            try tap("norm_out\(branch)", tokens[index])
            let folded = try transposed("from_tokens", tokens[index], bins: bins[index])
            try flush()
            results.append(Tensor(shape: boundary.shape, values: values(folded)))
            observe?("output\(branch)", results[index])
        }
        return (results[0], results[1])
    }

    private func embedded(_ branch: String, _ boundary: Tensor, bins: Int) throws(HostError) -> Tokens {
        let input = try empty(config.width, boundary.count / config.width)
        func fill<Element>(_ values: [Element]) {
            values.withUnsafeBytes {
                input.lease.buffer.contents().copyMemory(from: $0.baseAddress!, byteCount: $0.count)
            }
        }
        switch storage {
        case .float: fill(boundary.values)
        case .half: fill(boundary.values.map(Float16.init))
        }
        observe?("input\(branch)", storage == .half ? boundary.roundedToHalf() : boundary)
        let normed = try norm("norm_in\(branch)", transposed("to_tokens", input, bins: bins))
        let sum = try each("add_positions", normed, [.weight(weight("positions\(branch)"))])
        try tap("embedded\(branch)", sum)
        return sum
    }

    private func layer(_ path: String, _ x: Tokens, _ others: Tokens?) throws(HostError) -> Tokens {
        let queries = try norm("\(path).norm1", x)
        let sources = if let others { try norm("\(path).norm2", others) } else { queries }
        let attended = try attention(path, others == nil ? "self" : "cross", queries, sources)
        let y = try residual(path, 1, x, attended)
        let normed = try norm("\(path).\(others == nil ? "norm2" : "norm3")", y)
        if observe != nil {  // the layer's own linear1 lies inside the fused kernel
            try tap("\(path).linear1", linear("\(path).linear1", normed))
        }
        let hidden = try linear("\(path).linear1", normed, kernel: "linear_gelu")
        try tap("\(path).gelu", hidden)
        let second = try linear("\(path).linear2", hidden)
        try tap("\(path).linear2", second)
        let z = try residual(path, 2, y, second)
        let result = try groupNorm("\(path).norm_out", z)
        try tap("\(path).norm_out", result)
        return result
    }

    private func attention(_ path: String, _ kind: String, _ queries: Tokens, _ sources: Tokens) throws(HostError)
        -> Tokens
    {
        let (name, width) = ("\(path).\(kind)_attn", config.width)
        let (matrix, bias) = (try weight("\(name).in_proj_weight"), try weight("\(name).in_proj_bias"))
        var projected: [Tokens] = []
        for (third, (letter, x)) in [("q", queries), ("k", sources), ("v", sources)].enumerated() {
            let part = try product(
                "linear", x, matrix.advanced(by: third * width * width), bias.advanced(by: third * width),
                outputs: width)
            try tapHeads("\(path).\(letter)", part)
            projected.append(part)
        }
        let (q, k, v) = (projected[0], projected[1], projected[2])
        if observe != nil {
            try tapLogits("\(path).logits", q, k)
        }
        let (count, size) = (constants("attention"), width / config.heads)
        let (block, tile) = (count["QUERIES"]!, count["SOURCES"]!)
        let mixed = try empty(q.rows, width)
        try dispatch(
            "attention", groups: (ceil(q.rows, block), width / size, 1), threads: (count["THREADS"]!, 1, 1),
            memory: [block * size, tile * size, tile * size, block * size, block * tile, block * tile],
            [
                .tokens(q), .tokens(k), .tokens(v), .tokens(mixed), .uint(q.rows), .uint(k.rows), .uint(width),
                .uint(size), .float(1 / Float(size).squareRoot()),
            ])
        try tapHeads("\(path).heads", mixed)
        let result = try linear("\(name).out_proj", mixed)
        try tap(name, result)
        return result
    }

    private func residual(_ path: String, _ number: Int, _ x: Tokens, _ branch: Tokens) throws(HostError) -> Tokens {
        let gamma = try weight("\(path).gamma_\(number).scale")
        if observe != nil {
            try tap("\(path).gamma_\(number)", each("scale", branch, [.weight(gamma)], [.uint(branch.columns)]))
        }
        let sum = try each("scale_residual", x, [.tokens(branch), .weight(gamma)], [.uint(x.columns)])
        try tap("\(path).residual_\(number)", sum)
        return sum
    }

    private func norm(_ name: String, _ x: Tokens) throws(HostError) -> Tokens {
        let y = try empty(x.rows, x.columns)
        try dispatch(
            "layer_norm", groups: (x.rows, 1, 1), threads: (Self.lanes, 1, 1), memory: [Self.lanes],
            [
                .tokens(x), .weight(weight("\(name).weight")), .weight(weight("\(name).bias")), .tokens(y),
                .uint(x.columns), .float(config.eps),
            ])
        try tap(name, y)
        return y
    }

    /// Statistics over all tokens and channels, in two levels.
    private func groupNorm(_ name: String, _ x: Tokens) throws(HostError) -> Tokens {
        let (means, variances) = (try empty(x.rows, 1, .float), try empty(x.rows, 1, .float))
        let moments = try empty(2, 1, .float)
        try dispatch(
            "group_norm_tokens", groups: (x.rows, 1, 1), threads: (Self.lanes, 1, 1), memory: [Self.lanes],
            [.tokens(x), .tokens(means), .tokens(variances), .uint(x.columns)])
        try dispatch(
            "group_norm_moments", groups: (1, 1, 1), threads: (Self.momentLanes, 1, 1), memory: [Self.momentLanes],
            [.tokens(means), .tokens(variances), .tokens(moments), .uint(x.rows)])
        return try each(
            "group_norm_apply", x,
            [.tokens(moments), .weight(weight("\(name).weight")), .weight(weight("\(name).bias"))],
            [.uint(x.columns), .float(config.eps)])
    }

    private func linear(_ name: String, _ x: Tokens, kernel: String = "linear") throws(HostError) -> Tokens {
        let outputs = name.hasSuffix("linear1") ? config.hidden : config.width
        return try product(kernel, x, weight("\(name).weight"), weight("\(name).bias"), outputs: outputs)
    }

    private func product(
        _ kernel: String, _ x: Tokens, _ matrix: PlacedWeight, _ bias: PlacedWeight, outputs: Int
    ) throws(HostError) -> Tokens {
        let size = constants("linear")
        let (side, rows, columns, depth) = (size["SIDE"]!, size["ROWS"]!, size["COLUMNS"]!, size["DEPTH"]!)
        let y = try empty(x.rows, outputs)
        try dispatch(
            kernel, groups: (ceil(outputs, columns), ceil(x.rows, rows), 1), threads: (side, side, 1),
            memory: [depth * rows, depth * columns],
            [
                .tokens(x), .weight(matrix), .weight(bias), .tokens(y), .uint(x.rows), .uint(x.columns), .uint(outputs),
            ])
        return y
    }

    /// `c f t -> (t f) c`, or back.
    private func transposed(_ kernel: String, _ x: Tokens, bins: Int) throws(HostError) -> Tokens {
        let (side, stride) = (constants("tokens")["SIDE"]!, constants("tokens")["STRIDE"]!)
        let channels = config.width
        let frames = x.count / channels / bins
        let (inner, outer) = kernel == "to_tokens" ? (frames, channels) : (channels, frames)
        let y = kernel == "to_tokens" ? try empty(frames * bins, channels) : try empty(channels, bins * frames)
        try dispatch(
            kernel, groups: (ceil(inner, side), ceil(outer, side), bins), threads: (side, side, 1),
            memory: [side * stride], [.tokens(x), .tokens(y), .uint(channels), .uint(bins), .uint(frames)])
        return y
    }

    /// A kernel with a thread for each element: x, more buffers, y, count, more numbers.
    private func each(
        _ kernel: String, _ x: Tokens, _ buffers: [Argument], _ numbers: [Argument] = []
    ) throws(HostError) -> Tokens {
        let y = try empty(x.rows, x.columns)
        try dispatch(
            kernel, groups: (ceil(x.count, Self.each), 1, 1), threads: (Self.each, 1, 1), memory: [],
            [.tokens(x)] + buffers + [.tokens(y), .uint(x.count)] + numbers)
        return y
    }

    // MARK: Dispatching

    private func dispatch(
        _ kernel: String, groups: (Int, Int, Int), threads: (Int, Int, Int), memory: [Int], _ arguments: [Argument]
    ) throws(HostError) {
        guard let pipeline = kernels.pipelines[kernel] else { throw fault("must have the kernel \(kernel)", "none") }
        let encoder = try encoder()
        encoder.setComputePipelineState(pipeline)
        for (index, argument) in arguments.enumerated() {
            switch argument {
            case .buffer(let buffer, let offset): encoder.setBuffer(buffer, offset: offset, index: index)
            case .uint(let value):
                var value = UInt32(value)
                encoder.setBytes(&value, length: 4, index: index)
            case .float(var value): encoder.setBytes(&value, length: 4, index: index)
            }
        }
        for (index, floats) in memory.enumerated() {
            encoder.setThreadgroupMemoryLength((4 * floats + 15) / 16 * 16, index: index)
        }
        encoder.dispatchThreadgroups(
            MTLSize(width: groups.0, height: groups.1, depth: groups.2),
            threadsPerThreadgroup: MTLSize(width: threads.0, height: threads.1, depth: threads.2))
    }

    private func encoder() throws(HostError) -> any MTLComputeCommandEncoder {
        if let open { return open.encoder }
        guard let buffer = queue.makeCommandBuffer(), let encoder = buffer.makeComputeCommandEncoder() else {
            throw fault("must encode", "no command buffer")
        }
        open = (buffer, encoder)
        return encoder
    }

    /// Run what has been encoded, to its end.
    private func flush() throws(HostError) {
        guard let (buffer, encoder) = open else { return }
        open = nil
        encoder.endEncoding()
        buffer.commit()
        buffer.waitUntilCompleted()
        guard buffer.status == .completed else {
            throw fault("must complete its kernels", buffer.error.map { "\($0)" } ?? "status \(buffer.status.rawValue)")
        }
    }

    private func empty(_ rows: Int, _ columns: Int, _ fixed: KernelStorage? = nil) throws(HostError) -> Tokens {
        let storage = fixed ?? self.storage
        guard let lease = pool.lease(storage.width * rows * columns) else {
            throw fault("must hold \(rows) × \(columns) values", "no buffer")
        }
        return Tokens(lease: lease, storage: storage, rows: rows, columns: columns)
    }

    private func weight(_ name: String) throws(HostError) -> PlacedWeight {
        guard let weight = weights[name] else { throw fault("must have the weight \(name)", "none") }
        return weight
    }

    private func constants(_ file: String) -> [String: Int] { kernels.constants[file] ?? [:] }

    private func fault(_ invariant: String, _ received: String) -> HostError {
        .segment(invariant: "the transformer \(invariant)", received: received, fix: "Free memory, or report this.")
    }

    // MARK: Taps

    private func values(_ tokens: Tokens) -> [Float] {
        let memory = UnsafeRawBufferPointer(start: tokens.lease.buffer.contents(), count: tokens.lease.buffer.length)
        switch tokens.storage {
        case .float: return Array(memory.bindMemory(to: Float.self).prefix(tokens.count))
        case .half: return memory.bindMemory(to: Float16.self).prefix(tokens.count).map(Float.init)
        }
    }

    private func tap(_ name: String, _ tokens: Tokens) throws(HostError) {
        guard let observe else { return }
        try flush()
        observe(name, Tensor(shape: [1, tokens.rows, tokens.columns], values: values(tokens)))
    }

    /// `b n (h d) -> b h n d`
    private func tapHeads(_ name: String, _ tokens: Tokens) throws(HostError) {
        guard let observe else { return }
        try flush()
        let split = [tokens.rows, config.heads, tokens.columns / config.heads]
        let heads = Tensor(shape: split, values: values(tokens)).transposed([1, 0, 2])
        observe(name, heads.reshaped([1] + heads.shape))
    }

    private func tapLogits(_ name: String, _ q: Tokens, _ k: Tokens) throws(HostError) {
        let (count, size, rows) = (constants("attention"), config.width / config.heads, min(Self.logitRows, q.rows))
        let (block, tile) = (count["QUERIES"]!, count["SOURCES"]!)
        let logits = try empty(config.heads * rows, k.rows, .float)
        try dispatch(
            "attention_logits", groups: (ceil(rows, block), config.heads, ceil(k.rows, tile)),
            threads: (count["THREADS"]!, 1, 1), memory: [block * size, tile * size],
            [
                .tokens(q), .tokens(k), .tokens(logits), .uint(rows), .uint(k.rows), .uint(config.width), .uint(size),
                .float(1 / Float(size).squareRoot()),
            ])
        try flush()
        observe?(name, Tensor(shape: [1, config.heads, rows, k.rows], values: values(logits)))
    }
}

private func ceil(_ count: Int, _ part: Int) -> Int { (count + part - 1) / part }
