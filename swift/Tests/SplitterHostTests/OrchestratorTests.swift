import XCTest

@testable import SplitterBundle
@testable import SplitterHost

final class OrchestratorTests: XCTestCase {
    func testEveryBoundaryIsNearItsGolden() async throws {
        let bundle = try BundleReader(demoBundle())
        let results = try await verify(bundle, units: .cpuOnly)
        #if os(Linux)
            let limit = 110.0
        #else
            let limit = 90.0  // the plan's for Core ML on the processor; not run here
        #endif
        XCTAssertEqual(Set(results.map(\.name)), Set(bundle.tensors.keys).subtracting(bundle.inputs))
        for result in results {
            XCTAssertTrue(
                result.parity.reaches(limit, negligible: bundle.manifest.plan.negligible),
                "\(result.name): \(String(describing: result.parity.decibels)) dB")
        }
    }

    func testWhatIsNotFiniteStopsWhereItAppears() async throws {
        let bundle = try BundleReader(demoBundle())
        let orchestrator = try await Orchestrator(bundle)
        let shape = try XCTUnwrap(bundle.tensors["mix"]).shape
        var values = [Float](repeating: 0.1, count: shape.reduce(1, *))
        values[3] = .nan
        await assertThrows(.boundary, "mix entering the model must be finite") {
            _ = try await orchestrator.run(["mix": Tensor(shape: shape, values: values)])
        }
        await assertThrows(.boundary, "must have the shape") {
            _ = try await orchestrator.run(["mix": Tensor(shape: [1, 2, 3], values: [0, 0, 0, 0, 0, 0])])
        }
        await assertThrows(.boundary, "mix must be there") { _ = try await orchestrator.run([:]) }
    }

    func testAStopIsHeard() async throws {
        let orchestrator = try await Orchestrator(BundleReader(demoBundle()))
        let golden = try orchestrator.bundle.goldens()
        let running = Task { try await orchestrator.run(golden.filter { $0.key == "mix" }) }
        running.cancel()
        do {
            _ = try await running.value
            XCTFail("it ran to its end")
        } catch is CancellationError {}
    }
}

enum Kind { case bundle, boundary, specification, segment, audio, usage }

extension HostError {
    var kind: Kind {
        switch self {
        case .bundle: .bundle
        case .boundary: .boundary
        case .specification: .specification
        case .segment: .segment
        case .audio: .audio
        case .usage: .usage
        }
    }
}

/// The work must throw a `HostError` of a kind whose text holds some words, and say what to do.
func assertThrows(
    _ kind: Kind?, _ words: String, line: UInt = #line, _ work: () async throws -> Void
) async {
    do {
        try await work()
        XCTFail("nothing was thrown; expected \(words)", line: line)
    } catch let error as HostError {
        if let kind { XCTAssertEqual(error.kind, kind, "\(error)", line: line) }
        XCTAssertTrue("\(error)".contains(words), "\(error)", line: line)
        XCTAssertFalse(error.parts.fix.isEmpty, line: line)
    } catch {
        XCTFail("\(error)", line: line)
    }
}
