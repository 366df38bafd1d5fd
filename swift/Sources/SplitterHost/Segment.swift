import SplitterBundle

/// A loaded segment, which serves one run at a time.
protocol Segment: Sendable {
    /// - Parameter inputs: By name, as the specs describe them.
    /// - Returns: The outputs by name.
    func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor]
}

extension HostTransform: Segment {}

/// Where Core ML may run a segment.
public enum ComputeUnits: String, Sendable, CaseIterable {
    case all = "ALL"
    case cpuOnly = "CPU_ONLY"
    case cpuAndGPU = "CPU_AND_GPU"
    case cpuAndNeuralEngine = "CPU_AND_NE"
}
