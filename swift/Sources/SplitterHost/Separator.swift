import Foundation
import SplitterBundle

/// A separator's bundle, or a bag of several, loaded once for any number of songs, also several at a time.
public final class Separator: Sendable {
    public let bag: Bag
    private let orchestrators: [Orchestrator]

    /// Load every member.
    ///
    /// - Parameter progress: Told the name of each segment that is loaded.
    /// - Throws: `HostError`.
    public init(
        _ bag: Bag, units: ComputeUnits = .all, storage: KernelStorage = .float,
        progress: @Sendable (String) -> Void = { _ in }
    ) async throws {
        self.bag = bag
        var orchestrators: [Orchestrator] = []
        for member in bag.members {
            orchestrators.append(try await Orchestrator(member, units: units, storage: storage, progress: progress))
        }
        self.orchestrators = orchestrators
    }

    /// Separate a song into `STEM.wav` files of a folder.
    ///
    /// The work begins at once. It stops when the sequence, or the task that reads it, is dropped or cancelled; then
    /// nothing is written.
    ///
    /// - Returns: Progress, to its end or to an error (`HostError`, `CancellationError`).
    public func separate(
        _ sound: any SoundFile, into folder: URL, options: SeparationOptions = SeparationOptions()
    ) -> AsyncThrowingStream<SeparationProgress, any Error> {
        let (bag, models) = (bag, orchestrators.map(\.model))
        return AsyncThrowingStream { continuation in
            let work = Task {
                do {
                    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
                    _ = try await SplitterBundle.separate(sound, bag, models, into: folder, options: options) {
                        continuation.yield($0)
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { reason in
                if case .cancelled = reason { work.cancel() }
            }
        }
    }
}

extension Orchestrator {
    /// The model on one segment of sound.
    fileprivate var model: @Sendable (Tensor) async throws -> Tensor {
        { mix in
            let results = try await self.run([self.bundle.inputs[0]: mix])  // a separator has one input and one output
            guard let stems = results[self.bundle.outputs[0]] else {
                throw HostError.boundary(
                    invariant: "the model must give \(self.bundle.outputs[0])", received: "nothing",
                    fix: "Build it again.")
            }
            return stems
        }
    }
}
