import SplitterBundle

/// One boundary tensor against its golden.
public struct BoundaryParity: Sendable {
    public let name: String
    public let producer: String
    public let parity: Parity
    public let tensor: Tensor
}

/// Run a bundle on its golden input, and hold every boundary tensor that a segment gives against its golden.
///
/// Each segment but the first reads what the one before gave, so an error is carried on, as in use.
///
/// - Throws: `HostError`.
public func verify(
    _ bundle: BundleReader, units: ComputeUnits = .all, storage: KernelStorage = .float
) async throws -> [BoundaryParity] {
    let goldens = try bundle.goldens()
    let orchestrator = try await Orchestrator(bundle, units: units, storage: storage)
    let seen = Collected<BoundaryParity>()
    _ = try await orchestrator.run(goldens.filter { bundle.inputs.contains($0.key) }) { spec, tensor in
        guard spec.producer != "input", let golden = goldens[spec.name] else { return }
        let parity = Parity(reference: golden.values, computed: tensor.values)
        seen.append(BoundaryParity(name: spec.name, producer: spec.producer, parity: parity, tensor: tensor))
    }
    return seen.all
}

/// What each host stage and the transformer compute on the bundle's goldens, step by step, in the order of the segments.
///
/// - Throws: `HostError`.
public func taps(_ bundle: BundleReader) async throws -> [Tap] {
    let goldens = try bundle.goldens()
    var seen: [Tap] = []
    for segment in bundle.manifest.segments {
        let inputs = goldens.filter { segment.inputs.contains($0.key) }
        switch segment.artifact.target {
        case "host":
            let outputs = try HostTransform(bundle, segment).run(inputs) { seen.append($0) }
            seen += segment.outputs.compactMap { name in outputs[name].map { Tap(name: name, tensor: $0) } }
        case "kernels":
            seen += try await MetalTransformer(bundle, segment).taps(inputs)
        default: continue  // a package shows its boundary only, which `verify` holds
        }
    }
    return seen
}

extension MetalTransformer {
    fileprivate func taps(_ inputs: [String: Tensor]) throws -> [Tap] {
        var seen: [Tap] = []
        _ = try run(inputs) { seen.append(Tap(name: $0, tensor: $1)) }
        return seen
    }
}
