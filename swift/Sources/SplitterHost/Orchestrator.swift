import Foundation
import SplitterBundle

/// How long the parts of a run took.
struct RunTimes {
    /// Of each segment, in order.
    var segments: [Duration] = []
    /// Of the check of each boundary tensor.
    var checks: [String: Duration] = [:]
}

/// A bundle, ready to run segment by segment on this device.
///
/// Each boundary tensor is held against its spec when it is produced (name, shape, finite) and freed after its last
/// reader. Several runs may go on at once: each segment then serves one at a time.
public final class Orchestrator: Sendable {
    public let bundle: BundleReader
    private let segments: [any Segment]
    private let lastReader: [String: Int]
    /// How long each segment took to load.
    let loadTimes: [Duration]

    /// Load every segment.
    ///
    /// - Parameters:
    ///   - bundle: What to run.
    ///   - units: Where Core ML may run.
    ///   - storage: In which type the transformer's activations and matrices lie.
    ///   - progress: Told the name of each segment that is loaded.
    /// - Throws: `HostError`; nothing else is tried in the place of a segment that cannot be loaded.
    public init(
        _ bundle: BundleReader, units: ComputeUnits = .all, storage: KernelStorage = .float,
        progress: @Sendable (String) -> Void = { _ in }
    ) async throws {
        self.bundle = bundle
        var segments: [any Segment] = []
        var lastReader: [String: Int] = [:]
        var loadTimes: [Duration] = []
        for (index, segment) in bundle.manifest.segments.enumerated() {
            let begun = ContinuousClock.now
            switch segment.artifact.target {
            case "host": segments.append(try HostTransform(bundle, segment))
            case "coreml": segments.append(try await CoreMLSegment(bundle, segment, units: units))
            case "kernels": segments.append(try MetalTransformer(bundle, segment, storage: storage))
            default:
                throw HostError.bundle(
                    invariant: "segment \(segment.name) must be for host, coreml or kernels",
                    received: segment.artifact.target,
                    fix: "Build it with such targets where the model takes them, or run it with `splitter separate`.")
            }
            loadTimes.append(begun.duration(to: .now))
            for name in segment.inputs {
                lastReader[name] = index
            }
            progress(segment.name)
        }
        (self.segments, self.lastReader, self.loadTimes) = (segments, lastReader, loadTimes)
    }

    /// Run all segments.
    ///
    /// - Parameters:
    ///   - inputs: The model's inputs by name.
    ///   - observe: Shown every boundary tensor when it has been checked.
    /// - Returns: The model's outputs by name.
    /// - Throws: `HostError.boundary`, which names the tensor and the segment; `CancellationError`.
    public func run(
        _ inputs: [String: Tensor], observe: @Sendable (TensorSpec, Tensor) -> Void = { _, _ in }
    ) async throws -> [String: Tensor] {
        var times = RunTimes()
        return try await run(inputs, &times, observe)
    }

    /// The same, timed.
    func run(
        _ inputs: [String: Tensor], _ times: inout RunTimes, _ observe: @Sendable (TensorSpec, Tensor) -> Void
    ) async throws -> [String: Tensor] {
        var values: [String: Tensor] = [:]
        for name in bundle.inputs {
            values[name] = try checked(name, inputs, "entering the model", &times, observe)
        }
        for (index, record) in bundle.manifest.segments.enumerated() {
            try Task.checkCancellation()
            let given = values.filter { record.inputs.contains($0.key) }
            let begun = ContinuousClock.now
            let results = try await segments[index].run(given)
            times.segments.append(begun.duration(to: .now))
            for name in record.inputs where lastReader[name] == index && !bundle.outputs.contains(name) {
                values[name] = nil
            }
            for name in record.outputs {
                values[name] = try checked(name, results, "leaving \(record.name)", &times, observe)
            }
        }
        return values.filter { bundle.outputs.contains($0.key) }
    }

    private func checked(
        _ name: String, _ tensors: [String: Tensor], _ at: String, _ times: inout RunTimes,
        _ observe: (TensorSpec, Tensor) -> Void
    ) throws(HostError) -> Tensor {
        let begun = ContinuousClock.now
        guard let spec = bundle.tensors[name], var tensor = tensors[name] else {
            throw .boundary(
                invariant: "tensor \(name) must be there \(at)",
                received: "only \(tensors.keys.sorted().joined(separator: ", "))",
                fix: "The segment and the bundle come from different builds.")
        }
        guard tensor.shape == spec.shape else {
            throw .boundary(
                invariant: "tensor \(name) \(at) must have the shape \(spec.shape)", received: "\(tensor.shape)",
                fix: "The segment and the bundle come from different builds, or the input is not one segment long.")
        }
        if spec.dtype == "float16" {
            tensor = tensor.roundedToHalf()
        }
        if let index = tensor.firstNotFinite {
            throw .boundary(
                invariant: "tensor \(name) \(at) must be finite",
                received: "\(tensor.values[index]) at element \(index)",
                fix: "Look for overflow in half precision, or for NaN in the input.")
        }
        times.checks[name] = begun.duration(to: .now)
        observe(spec, tensor)
        return tensor
    }
}
