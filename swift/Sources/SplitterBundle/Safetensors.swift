import Foundation

/// A named array, of complex numbers if it has an imaginary part.
public struct Tap: Sendable {
    public let name: String
    public let tensor: Tensor
    public let imaginary: Tensor?

    public init(name: String, tensor: Tensor, imaginary: Tensor? = nil) {
        (self.name, self.tensor, self.imaginary) = (name, tensor, imaginary)
    }
}

/// Files of named arrays: a header of JSON, then the values.
public enum Safetensors {
    private struct Entry: Codable {
        let dtype: String
        let shape: [Int]
        let data_offsets: [Int]
    }

    /// Every array of a file of float32 and float16.
    ///
    /// - Throws: `HostError.bundle`.
    public static func read(_ file: MappedFile, name: String) throws(HostError) -> [String: Tensor] {
        func fault(_ invariant: String, _ received: String) -> HostError {
            .bundle(invariant: "\(name): \(invariant)", received: received, fix: "Build the bundle again.")
        }
        let bytes = file.bytes
        guard bytes.count >= 8 else {
            throw fault("a file must begin with its header's length", "\(bytes.count) bytes")
        }
        let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
        guard length <= bytes.count - 8 else { throw fault("the header must end before the file", "\(length) bytes") }
        let values = UnsafeRawBufferPointer(rebasing: bytes[(8 + Int(length))...])
        let header: [String: HeaderValue]
        do {
            header = try JSONDecoder().decode([String: HeaderValue].self, from: Data(bytes[8..<8 + Int(length)]))
        } catch {
            throw fault("the header must be JSON", BundleReader.explained(error))
        }
        var tensors: [String: Tensor] = [:]
        for (key, value) in header {
            guard case .entry(let entry) = value else { continue }
            let width = ["F32": 4, "F16": 2][entry.dtype]
            guard let width else { throw fault("\(key) must be F32 or F16", entry.dtype) }
            guard entry.shape.allSatisfy({ $0 >= 0 }), let count = BundleReader.elements(entry.shape),
                entry.data_offsets.count == 2, entry.data_offsets[0] >= 0, entry.data_offsets[1] <= values.count,
                entry.data_offsets[1] - entry.data_offsets[0] == count * width
            else { throw fault("\(key) must lie in the file", "\(entry.shape) at \(entry.data_offsets)") }
            let part = UnsafeRawBufferPointer(rebasing: values[entry.data_offsets[0]..<entry.data_offsets[1]])
            tensors[key] = Tensor(shape: entry.shape, values: floats(part, width: width, count: count))
        }
        return tensors
    }

    /// Write arrays as float32, and complex ones as complex64.
    ///
    /// - Throws: What the system says.
    public static func write(_ taps: [Tap], format: String, to path: URL) throws {
        var header: [String: HeaderValue] = ["__metadata__": .metadata(["format": format])]
        var offset = 0
        for tap in taps {
            let end = offset + tap.tensor.count * (tap.imaginary == nil ? 4 : 8)
            let dtype = tap.imaginary == nil ? "F32" : "C64"
            header[tap.name] = .entry(Entry(dtype: dtype, shape: tap.tensor.shape, data_offsets: [offset, end]))
            offset = end
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        var json = try encoder.encode(header)
        json.append(Data(repeating: UInt8(ascii: " "), count: (8 - json.count % 8) % 8))
        var content = withUnsafeBytes(of: UInt64(json.count).littleEndian) { Data($0) } + json
        for tap in taps {
            let values =
                tap.imaginary.map { zip(tap.tensor.values, $0.values).flatMap { [$0, $1] } } ?? tap.tensor.values
            values.withUnsafeBytes { content.append(contentsOf: $0) }
        }
        try content.write(to: path, options: .atomic)
    }

    /// Little-endian values of 4 or 2 bytes, wherever they lie.
    static func floats(_ bytes: UnsafeRawBufferPointer, width: Int, count: Int) -> [Float] {
        [Float](unsafeUninitializedCapacity: count) { result, initialized in
            if width == 4 {
                UnsafeMutableRawBufferPointer(result).copyMemory(from: bytes)
            } else {
                for i in 0..<count {
                    let bits = bytes.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self)
                    result[i] = Float(Float16(bitPattern: UInt16(littleEndian: bits)))
                }
            }
            initialized = count
        }
    }

    /// An array, or the strings of `__metadata__`.
    private enum HeaderValue: Codable {
        case entry(Entry)
        case metadata([String: String])

        init(from decoder: any Decoder) throws {
            let content = try decoder.singleValueContainer()
            if let entry = try? content.decode(Entry.self) {
                self = .entry(entry)
            } else {
                self = .metadata(try content.decode([String: String].self))
            }
        }

        func encode(to encoder: any Encoder) throws {
            var content = encoder.singleValueContainer()
            switch self {
            case .entry(let entry): try content.encode(entry)
            case .metadata(let strings): try content.encode(strings)
            }
        }
    }
}
