import SplitterBundle

/// One boundary tensor against its golden.
public struct BoundaryParity: Sendable {
    public let name: String
    public let producer: String
    public let parity: Parity
}

/// Run a bundle on its golden input, and hold every boundary tensor that a segment gives against its golden.
///
/// Each segment but the first reads what the one before gave, so an error is carried on, as in use.
///
/// - Throws: `HostError`.
public func verify(_ bundle: BundleReader, units: ComputeUnits = .all) async throws -> [BoundaryParity] {
    let goldens = try bundle.goldens()
    let orchestrator = try await Orchestrator(bundle, units: units)
    let seen = Collected<BoundaryParity>()
    _ = try await orchestrator.run(goldens.filter { bundle.inputs.contains($0.key) }) { spec, tensor in
        guard spec.producer != "input", let golden = goldens[spec.name] else { return }
        let parity = Parity(reference: golden.values, computed: tensor.values)
        seen.append(BoundaryParity(name: spec.name, producer: spec.producer, parity: parity))
    }
    return seen.all
}

/// The taps of the bundle's transformer on its golden input, in the order in which they are computed.
///
/// - Throws: `HostError`; `HostError.usage` if it has no transformer for the kernels.
public func taps(_ bundle: BundleReader) async throws -> [(name: String, tensor: Tensor)] {
    guard let segment = bundle.manifest.segments.first(where: { $0.artifact.target == "kernels" }) else {
        throw HostError.usage(
            invariant: "taps are those of a transformer for the kernels",
            received: "a bundle without", fix: "Build the transformer for the kernels.")
    }
    let transformer = try MetalTransformer(bundle, segment)
    return try await transformer.taps(bundle.goldens())
}

extension MetalTransformer {
    fileprivate func taps(_ inputs: [String: Tensor]) throws -> [(name: String, tensor: Tensor)] {
        var seen: [(name: String, tensor: Tensor)] = []
        _ = try run(inputs) { seen.append(($0, $1)) }
        return seen
    }
}
