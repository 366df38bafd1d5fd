import Foundation

/// The transformer's parameters in their mapped file: found by the manifest's byte offsets, decoded where compressed.
public struct TransformerWeights: Sendable {
    public let file: MappedFile
    public let record: TransformerRecord
    private let parameters: [String: [String: TensorRecord]]  // by name, then by role

    /// Hold the record against the file.
    ///
    /// - Throws: `HostError.bundle` if a tensor does not lie in the file, or a count is out of range.
    public init(_ bundle: BundleReader, _ segment: SegmentRecord) throws(HostError) {
        func fault(_ invariant: String, _ received: String) -> HostError {
            .bundle(invariant: invariant, received: received, fix: "Build the bundle again.")
        }
        guard let record = segment.artifact.transformer, record.format == TransformerRecord.format else {
            throw fault(
                "the transformer's record must be of the format \(TransformerRecord.format)",
                segment.artifact.transformer?.format ?? "none")
        }
        let config = record.config
        guard
            [config.width, config.heads, config.layers, config.hidden, config.freqTokens, config.timeTokens]
                .allSatisfy({ (1...1 << 24).contains($0) }), config.layers <= 1024, config.width % config.heads == 0,
            config.eps > 0, record.inputs.count == 2, record.outputs.count == 2
        else { throw fault("the transformer's configuration must be possible", "\(config)") }
        file = try bundle.file(segment.artifact.path)
        var parameters: [String: [String: TensorRecord]] = [:]
        for (name, tensor) in record.tensors {
            let width = ["float32": 4, "float16": 2, "int8": 1, "uint8": 1][tensor.dtype]
            guard let width, tensor.shape.allSatisfy({ $0 >= 0 }), let count = BundleReader.elements(tensor.shape),
                tensor.parameterShape.allSatisfy({ $0 > 0 }), BundleReader.elements(tensor.parameterShape) != nil,
                tensor.bytes == count * width, tensor.offset >= 0, tensor.offset % 64 == 0,
                tensor.offset <= file.bytes.count - tensor.bytes
            else { throw fault("\(name) must lie in the transformer's file at a multiple of 64 bytes", "\(tensor)") }
            parameters[tensor.parameter, default: [:]][tensor.role] = tensor
        }
        (self.record, self.parameters) = (record, parameters)
    }

    /// True if the file has a parameter of this name.
    public func has(_ name: String) -> Bool { parameters[name] != nil }

    /// Where a parameter lies, if it is stored in some element type, as it is, in the expected shape.
    public func offset(_ name: String, shape: [Int], dtype: String) -> Int? {
        guard let values = parameters[name]?["values"], values.dtype == dtype, values.shape == shape,
            values.parameterShape == shape
        else { return nil }
        return values.offset
    }

    /// A parameter of the expected shape, decoded to float32 exactly as `splitter_kernels/compression.py` says.
    ///
    /// - Throws: `HostError.bundle` if there is none, or it has another shape or another form.
    public func values(_ name: String, shape: [Int]) throws(HostError) -> [Float] {
        let stored = parameters[name] ?? [:]
        guard let first = stored.values.first, first.parameterShape == shape else {
            throw .bundle(
                invariant: "the transformer must have \(name) of shape \(shape)",
                received: stored.values.first.map { "\($0.parameterShape)" } ?? "none", fix: "Build the bundle again.")
        }
        let count = shape.reduce(1, *)
        if let values = stored["values"], values.shape == shape, ["float32", "float16"].contains(values.dtype) {
            return floats(values)
        }
        if let quotients = stored["int8"], let scales = stored["scales"], quotients.dtype == "int8",
            quotients.shape == shape, scales.dtype == "float32", scales.shape == [shape[0]]
        {
            let (bytes, scales, columns) = (bytes(quotients), floats(scales), count / shape[0])
            return (0..<count).map { Float(Int8(bitPattern: bytes[$0])) * scales[$0 / columns] }
        }
        if let indices = stored["indices"], let table = stored["table"], indices.dtype == "uint8",
            table.dtype == "float32", let bits = [16: 4, 64: 6, 256: 8][table.shape.reduce(1, *)],
            indices.bytes == (count * bits + 7) / 8
        {
            return unpacked(bytes(indices), table: floats(table), bits: bits, count: count)
        }
        throw .bundle(
            invariant: "\(name) must be stored as values, int8 with scales, or indices with a table",
            received: stored.keys.sorted().joined(separator: ", "), fix: "Build the bundle again.")
    }

    /// Index i is bits i·n … i·n + n − 1 of the stream, lowest bits first.
    private func unpacked(_ stream: UnsafeRawBufferPointer, table: [Float], bits: Int, count: Int) -> [Float] {
        (0..<count).map { i in
            let (byte, shift) = (i * bits / 8, i * bits % 8)
            var window = UInt16(stream[byte])
            if shift + bits > 8 {
                window |= UInt16(stream[byte + 1]) << 8
            }
            return table[Int(window >> UInt16(shift)) & (1 << bits - 1)]
        }
    }

    private func bytes(_ tensor: TensorRecord) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: file.bytes[tensor.offset..<tensor.offset + tensor.bytes])
    }

    private func floats(_ tensor: TensorRecord) -> [Float] {
        Safetensors.floats(
            bytes(tensor), width: tensor.dtype == "float16" ? 2 : 4, count: tensor.shape.reduce(1, *))
    }
}
