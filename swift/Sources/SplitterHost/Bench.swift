import Accelerate
import Foundation
import SplitterBundle

/// Seconds that a bundle takes on this device, as `splitter profile --merge` reads them (`splitter/profiling/bench.py`).
/// All lists of seconds have a figure for each turn, those that warm up first.
public struct Bench: Encodable, Sendable {
    /// One segment.
    public struct SegmentTimes: Encodable, Sendable {
        public let name: String
        /// What ran it.
        public let engine: String
        public let loadSeconds: Double
        public let seconds: [Double]

        private enum CodingKeys: String, CodingKey {
            case name, engine, seconds
            case loadSeconds = "load_seconds"
        }
    }

    /// What this device can do, measured before the runs: a product of matrices, and a copy (bytes read and written).
    public struct Limits: Encodable, Sendable {
        public let flopsPerSecond: Double
        public let bytesPerSecond: Double

        private enum CodingKeys: String, CodingKey {
            case flopsPerSecond = "flops_per_second"
            case bytesPerSecond = "bytes_per_second"
        }
    }

    public let format = "splitter.bench/1"
    /// Of the bundle's manifest.
    public let digest: String
    public let system: String
    /// The kind of the device, as `uname` names it.
    public let machine: String
    public let threads: Int
    public let computeUnits: String
    public let limits: Limits
    /// Turns that count for nothing.
    public let warmup: Int
    /// Of whole runs.
    public let wall: [Double]
    public let segments: [SegmentTimes]
    /// Of the check of each boundary tensor.
    public let checks: [String: [Double]]

    private enum CodingKeys: String, CodingKey {
        case format, digest, system, machine, threads, limits, warmup, wall, segments, checks
        case computeUnits = "compute_units"
    }

    /// Run a bundle on its golden input again and again.
    ///
    /// - Parameters:
    ///   - runs: Counted turns, at least one.
    ///   - warmup: Turns before them, at least one.
    ///   - progress: Told of each step.
    /// - Throws: `HostError`.
    public init(
        _ bundle: BundleReader, runs: Int = 5, warmup: Int = 1, units: ComputeUnits = .all,
        storage: KernelStorage = .float, progress: @Sendable (String) -> Void = { _ in }
    ) async throws {
        guard runs >= 1, warmup >= 1 else {
            throw HostError.usage(
                invariant: "a bench takes at least 1 run to count and 1 to warm up",
                received: "\(runs) and \(warmup)", fix: "The usual is 5 and 1.")
        }
        digest = bundle.manifest.digest
        system = ProcessInfo.processInfo.operatingSystemVersionString
        machine = Self.machineName
        threads = ProcessInfo.processInfo.activeProcessorCount
        (computeUnits, self.warmup) = (units.rawValue, warmup)
        progress("measuring this device")
        limits = Limits.measured
        let orchestrator = try await Orchestrator(bundle, units: units, storage: storage) { name in
            progress("\(name) is loaded")
        }
        let goldens = try bundle.goldens()
        let inputs = goldens.filter { bundle.inputs.contains($0.key) }
        var wall: [Double] = []
        var seconds = [[Double]](repeating: [], count: bundle.manifest.segments.count)
        var checks: [String: [Double]] = [:]
        for turn in 0..<warmup + runs {
            progress(turn < warmup ? "warming up" : "run \(turn - warmup + 1) of \(runs)")
            var times = RunTimes()
            let begun = ContinuousClock.now
            _ = try await orchestrator.run(inputs, &times) { _, _ in }
            wall.append(begun.duration(to: .now) / .seconds(1))
            for (segment, time) in times.segments.enumerated() {
                seconds[segment].append(time / .seconds(1))
            }
            for (name, time) in times.checks {
                checks[name, default: []].append(time / .seconds(1))
            }
        }
        (self.wall, self.checks) = (wall, checks)
        segments = bundle.manifest.segments.enumerated().map { index, segment in
            SegmentTimes(
                name: segment.name, engine: "splitter-host, \(segment.artifact.target)",
                loadSeconds: orchestrator.loadTimes[index] / .seconds(1), seconds: seconds[index])
        }
    }

    private static var machineName: String {
        var names = utsname()
        uname(&names)
        return withUnsafeBytes(of: names.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }
}

extension Bench.Limits {
    private static let rows = 512  // of square matrices
    private static let copied = 1 << 26  // bytes; beyond the caches of most processors
    private static let attempts = 5

    /// The best of some attempts: what slows others is not the device.
    fileprivate static var measured: Bench.Limits {
        let matrix = [Float](repeating: 0.5, count: rows * rows)
        var product = matrix
        let side = vDSP_Length(rows)
        let multiplied = fewest { vDSP_mmul(matrix, 1, matrix, 1, &product, 1, side, side, side) }
        let source = [UInt8](repeating: 1, count: copied)
        var target = source
        let moved = fewest {
            target.withUnsafeMutableBytes { target in source.withUnsafeBytes { target.copyMemory(from: $0) } }
        }
        return Bench.Limits(
            flopsPerSecond: 2 * Double(rows * rows * rows) / multiplied, bytesPerSecond: 2 * Double(copied) / moved)
    }

    /// Fewest seconds of some calls.
    private static func fewest(_ call: () -> Void) -> Double {
        let clock = ContinuousClock()
        return (0..<attempts).map { _ in clock.measure(call) / .seconds(1) }.min() ?? 0
    }
}
