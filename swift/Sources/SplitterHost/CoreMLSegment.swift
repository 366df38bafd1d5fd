import CoreML
import Foundation
import SplitterBundle

/// A segment that Core ML runs. An actor, so that a model never makes two predictions at a time: a published port
/// got corrupted results from two.
actor CoreMLSegment: Segment {
    private let model: MLModel
    private let name: String
    private let inputs: [TensorSpec]
    private let outputs: [TensorSpec]

    /// Compile and load a package, and hold what it takes and gives against the manifest.
    ///
    /// - Throws: `HostError.bundle`, or `HostError.segment` with what Core ML says.
    init(_ bundle: BundleReader, _ segment: SegmentRecord, units: ComputeUnits) async throws {
        name = segment.name
        inputs = segment.inputs.compactMap { bundle.tensors[$0] }
        outputs = segment.outputs.compactMap { bundle.tensors[$0] }
        let package = try bundle.package(segment.artifact.path)
        do {
            let compiled = try await MLModel.compileModel(at: package)
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units.value
            model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        } catch {
            throw HostError.segment(
                invariant: "Core ML must load \(segment.artifact.path)", received: "\(error)",
                fix: "Build the bundle for a deployment target that this system has.")
        }
        for (specs, features) in [
            (inputs, model.modelDescription.inputDescriptionsByName),
            (outputs, model.modelDescription.outputDescriptionsByName),
        ] {
            for spec in specs {
                let found = features[spec.name]?.multiArrayConstraint
                guard found?.shape.map(\.intValue) == spec.packagedShape, found?.dataType == spec.dataType else {
                    throw HostError.bundle(
                        invariant:
                            "\(segment.artifact.path) must have \(spec.name) as \(spec.packagedShape) \(spec.dtype)",
                        received: found.map { "\($0.shape) of type \($0.dataType.rawValue)" } ?? "nothing of that name",
                        fix: "Build the bundle again.")
                }
            }
        }
    }

    func run(_ values: [String: Tensor]) throws -> [String: Tensor] {
        do {
            var features: [String: Any] = [:]
            for spec in inputs {
                guard let value = values[spec.name] else { continue }  // Core ML names what is missing
                features[spec.name] = MLFeatureValue(multiArray: try packaged(value, spec))
            }
            let provider = try MLDictionaryFeatureProvider(dictionary: features)
            let results = try model.prediction(from: provider)
            var tensors: [String: Tensor] = [:]
            for spec in outputs {
                if let array = results.featureValue(for: spec.name)?.multiArrayValue {
                    tensors[spec.name] = unpackaged(array, spec)
                }
            }
            return tensors
        } catch {
            throw HostError.segment(
                invariant: "Core ML must run \(name)", received: "\(error)", fix: "Try other compute units.")
        }
    }

    /// The tensor as the package takes it: folded into rows, with zeros behind its end, in the package's type.
    private func packaged(_ tensor: Tensor, _ spec: TensorSpec) throws -> MLMultiArray {
        let shape = spec.packagedShape
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: spec.dataType)
        let (length, held) = (tensor.shape.last ?? 1, spec.fold.map { $0.rows * $0.columns } ?? tensor.shape.last ?? 1)
        let columns = shape.last ?? 1
        array.withUnsafeMutableBytes { memory, strides in
            forEachRow(shape, strides) { row, place in
                let start = row * columns
                for i in 0..<columns {
                    let (item, within) = ((start + i) / held, (start + i) % held)
                    let value = within < length ? tensor.values[item * length + within] : 0
                    memory.store(value, place + i * (strides.last ?? 1), spec.dataType)
                }
            }
        }
        return array
    }

    /// The inverse, whatever the strides of the array are.
    private func unpackaged(_ array: MLMultiArray, _ spec: TensorSpec) -> Tensor {
        let shape = array.shape.map(\.intValue)
        let (length, held) = (spec.shape.last ?? 1, spec.fold.map { $0.rows * $0.columns } ?? spec.shape.last ?? 1)
        let columns = shape.last ?? 1
        guard shape == spec.packagedShape else { return Tensor(shape: [0], values: []) }  // the orchestrator says so
        var values = [Float](repeating: 0, count: spec.shape.reduce(1, *))
        let strides = array.strides.map(\.intValue)
        array.withUnsafeBytes { memory in
            forEachRow(shape, strides) { row, place in
                for i in 0..<columns {
                    let (item, within) = ((row * columns + i) / held, (row * columns + i) % held)
                    guard within < length else { continue }
                    values[item * length + within] = memory.load(place + i * (strides.last ?? 1), array.dataType)
                }
            }
        }
        return Tensor(shape: spec.shape, values: values)
    }

    /// Number of every row of the last axis, and the index of its first element.
    private func forEachRow(_ shape: [Int], _ strides: [Int], _ visit: (_ row: Int, _ place: Int) -> Void) {
        for row in 0..<shape.dropLast().reduce(1, *) {
            var (rest, place) = (row, 0)
            for axis in shape.indices.dropLast().reversed() {
                place += rest % shape[axis] * strides[axis]
                rest /= shape[axis]
            }
            visit(row, place)
        }
    }
}

extension TensorSpec {
    /// Core ML's name of the element type.
    fileprivate var dataType: MLMultiArrayDataType { dtype == "float16" ? .float16 : .float32 }
}

extension ComputeUnits {
    fileprivate var value: MLComputeUnits {
        switch self {
        case .all: .all
        case .cpuOnly: .cpuOnly
        case .cpuAndGPU: .cpuAndGPU
        case .cpuAndNeuralEngine: .cpuAndNeuralEngine
        }
    }
}

extension UnsafeMutableRawBufferPointer {
    fileprivate func store(_ value: Float, _ index: Int, _ type: MLMultiArrayDataType) {
        if type == .float16 {
            storeBytes(of: Float16(value), toByteOffset: 2 * index, as: Float16.self)
        } else {
            storeBytes(of: value, toByteOffset: 4 * index, as: Float.self)
        }
    }
}

extension UnsafeRawBufferPointer {
    fileprivate func load(_ index: Int, _ type: MLMultiArrayDataType) -> Float {
        type == .float16
            ? Float(load(fromByteOffset: 2 * index, as: Float16.self)) : load(fromByteOffset: 4 * index, as: Float.self)
    }
}
