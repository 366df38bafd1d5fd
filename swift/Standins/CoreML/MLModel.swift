import Foundation
import StandinServer

public enum MLComputeUnits: Int, Sendable {
    case cpuOnly = 0
    case cpuAndGPU = 1
    case all = 2
    case cpuAndNeuralEngine = 3
}

public final class MLModelConfiguration {
    public var computeUnits: MLComputeUnits = .all
    public init() {}
}

public final class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?
    public init(multiArray value: MLMultiArray) { multiArrayValue = value }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    public init(dictionary: [String: Any]) throws {
        values = try dictionary.mapValues {
            guard let value = $0 as? MLFeatureValue else { throw NSError(domain: "com.apple.CoreML", code: 0) }
            return value
        }
    }

    public var featureNames: Set<String> { Set(values.keys) }
    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public final class MLMultiArrayConstraint {
    public let shape: [NSNumber]
    public let dataType: MLMultiArrayDataType
    init(shape: [Int], dataType: MLMultiArrayDataType) {
        (self.shape, self.dataType) = (shape.map { NSNumber(value: $0) }, dataType)
    }
}

public final class MLFeatureDescription {
    public let multiArrayConstraint: MLMultiArrayConstraint?
    init(_ constraint: MLMultiArrayConstraint) { multiArrayConstraint = constraint }
}

public final class MLModelDescription {
    public let inputDescriptionsByName: [String: MLFeatureDescription]
    public let outputDescriptionsByName: [String: MLFeatureDescription]
    init(_ inputs: [String: MLFeatureDescription], _ outputs: [String: MLFeatureDescription]) {
        (inputDescriptionsByName, outputDescriptionsByName) = (inputs, outputs)
    }
}

/// A loaded package. Two predictions at a time are refused: a published port corrupted its results with two.
public final class MLModel: @unchecked Sendable {
    public let modelDescription: MLModelDescription
    private let number: Int
    private let busy = NSLock()

    /// A package as Core ML loads it: a folder `NAME.mlmodelc` that leads to the package.
    public static func compileModel(at package: URL) async throws -> URL {
        guard package.pathExtension == "mlpackage" else { throw failure("\(package.lastPathComponent) is no package") }
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        let compiled = folder.appendingPathComponent(package.deletingPathExtension().lastPathComponent + ".mlmodelc")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(at: compiled, withDestinationURL: package)
        return compiled
    }

    public static func load(contentsOf compiled: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        guard compiled.pathExtension == "mlmodelc" else {
            throw failure("\(compiled.lastPathComponent) is not compiled")
        }
        return try MLModel(compiled.resolvingSymlinksInPath())
    }

    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider {
        guard busy.try() else { throw Self.failure("a prediction is running already") }
        defer { busy.unlock() }
        let arrays = try modelDescription.inputDescriptionsByName.keys.map { name in
            guard let value = input.featureValue(for: name)?.multiArrayValue else {
                throw Self.failure("\(name) is missing")
            }
            return value.sent(as: name)
        }
        let results = try Server.shared.ask(["do": "predict", "model": number], arrays).arrays
        return try MLDictionaryFeatureProvider(
            dictionary: Dictionary(
                uniqueKeysWithValues: results.map {
                    ($0.name, MLFeatureValue(multiArray: try MLMultiArray(received: $0)))
                }
            ))
    }

    private struct Loaded: Decodable {
        struct Feature: Decodable { let name: String, shape: [Int], dtype: String }
        let model: Int
        let inputs: [Feature]
        let outputs: [Feature]
    }

    private init(_ package: URL) throws {
        let answer = try Server.shared.ask(["do": "load", "path": package.path]).answer
        let loaded = try JSONDecoder().decode(Loaded.self, from: answer)
        func described(_ features: [Loaded.Feature]) -> [String: MLFeatureDescription] {
            Dictionary(
                uniqueKeysWithValues: features.map {
                    let type: MLMultiArrayDataType = $0.dtype == "float16" ? .float16 : .float32
                    return ($0.name, MLFeatureDescription(MLMultiArrayConstraint(shape: $0.shape, dataType: type)))
                })
        }
        number = loaded.model
        modelDescription = MLModelDescription(described(loaded.inputs), described(loaded.outputs))
    }

    private static func failure(_ reason: String) -> NSError {
        NSError(domain: "com.apple.CoreML", code: 0, userInfo: [NSLocalizedDescriptionKey: reason])
    }
}

extension MLMultiArray {
    private static let rows = 32  // 200 elements a row become 224

    /// What a prediction gave, in rows that lie apart.
    convenience init(received array: WireArray) throws {
        try self.init(
            shape: array.shape, dataType: array.dtype == "float16" ? .float16 : .float32, rowsOf: Self.rows)
        move { memory, place, start, size in
            array.bytes.withUnsafeBytes { bytes in
                UnsafeMutableRawBufferPointer(rebasing: memory[place..<place + size])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[start..<start + size]))
            }
        }
    }

    /// The values without what lies between the rows.
    func sent(as name: String) -> WireArray {
        let width = dataType == .float16 ? 2 : 4
        var content = Data(count: shape.reduce(width) { $0 * $1.intValue })
        move { memory, place, start, size in
            content.replaceSubrange(start..<start + size, with: memory[place..<place + size])
        }
        return WireArray(
            name: name, shape: shape.map(\.intValue), dtype: dataType == .float16 ? "float16" : "float32",
            bytes: content)
    }

    /// Visit every row: where it begins in this memory and in dense memory, and its size, in bytes.
    private func move(_ visit: (UnsafeMutableRawBufferPointer, Int, Int, Int) -> Void) {
        let (extents, width) = (shape.map(\.intValue), dataType == .float16 ? 2 : 4)
        withUnsafeMutableBytes { memory, strides in
            let columns = extents.last ?? 1
            for row in 0..<extents.dropLast().reduce(1, *) {
                var (rest, place) = (row, 0)
                for axis in extents.indices.dropLast().reversed() {
                    place += rest % extents[axis] * strides[axis]
                    rest /= extents[axis]
                }
                visit(memory, place * width, row * columns * width, columns * width)
            }
        }
    }
}
