import Foundation

/// How to separate; the defaults are those of `splitter separate`.
public struct SeparationOptions: Sendable {
    /// Passes with a random shift to average; 0 for one plain pass, as many as the model's own inference where nil.
    public var shifts: Int?
    /// Fraction of a segment shared with the next; as in the model's own inference where nil.
    public var overlap: Double?
    /// Seconds of the song in one run of the model; all it takes where nil.
    public var segment: Double?
    /// Of the random shifts.
    public var seed: UInt32 = 0

    public init() {}
}

/// How far a separation has come, in seconds of sound of all passes.
public struct SeparationProgress: Sendable, Equatable {
    public let done: Double
    public let total: Double
}

/// Separate a song into one file for each stem. Memory does not grow with the song.
///
/// - Parameters:
///   - models: A run of each member of the bag.
///   - folder: There already; gets `STEM.wav` in 32 bit floats when all is done.
///   - progress: Told before the first and after every run of a model.
/// - Returns: The files, by stem.
/// - Throws: `HostError`; `CancellationError`, and then nothing is written.
public func separate(
    _ sound: any SoundFile, _ bag: Bag, _ models: [@Sendable (Tensor) async throws -> Tensor], into folder: URL,
    options: SeparationOptions, progress: @escaping (SeparationProgress) -> Void
) async throws -> [String: URL] {
    let audio = bag.audio
    guard sound.samplerate == audio.samplerate, sound.channels == audio.channels || sound.channels == 1 else {
        throw HostError.audio(
            invariant: "the song must have \(audio.samplerate) Hz and \(audio.channels) channels, or one",
            received: "\(sound.samplerate) Hz and \(sound.channels) channels",
            fix: "Convert it first; `splitter separate` takes any.")
    }
    let asked = options.shifts ?? audio.chunking?.shifts ?? Chunking().shifts
    guard asked >= 0 else {
        throw HostError.usage(
            invariant: "shifts must be 0 or more", received: "\(asked)", fix: "The usual is 1.")
    }
    let statistics = try Statistics(sound, isApplied: (audio.chunking ?? Chunking()).normalised)
    let rows = audio.stems.count * audio.channels
    var random = PythonRandom(seed: options.seed)
    var planned: [(member: Int, geometry: Geometry, offset: Int?)] = []
    for (member, bundle) in bag.members.enumerated() {
        guard let own = bundle.manifest.model.audio else { continue }  // the bag has checked that there is one
        let geometry = try Geometry(own, overlap: options.overlap, segment: options.segment)
        let offsets: [Int?] = (0..<asked).map { _ in random.integer(upTo: geometry.maxShift) }
        planned += (offsets.isEmpty ? [nil] : offsets).map { (member, geometry, $0) }
    }
    func seconds(_ samples: Int) -> Double { Double(samples) / Double(audio.samplerate) }
    let total = planned.reduce(0.0) {
        $0 + seconds($1.geometry.runs(statistics.samples, offset: $1.offset) * $1.geometry.stride)
    }
    var done = 0.0
    progress(SeparationProgress(done: 0, total: total))
    let passes = planned.map { member, geometry, offset in
        (
            member,
            SongPass(
                sound, statistics, geometry, rows: rows, channels: audio.channels, offset: offset,
                advanced: {
                    done += seconds(geometry.stride)
                    progress(SeparationProgress(done: done, total: total))
                }, model: models[member])
        )
    }
    let files = audio.stems.map { folder.appendingPathComponent("\($0).wav") }
    var writers: [WaveWriter] = []
    for file in files {
        writers.append(
            try WaveWriter(file, samplerate: audio.samplerate, channels: audio.channels, frames: statistics.samples))
    }
    let (step, shifts) = (planned[0].geometry.stride, max(1, asked))
    let totals = audio.stems.indices.map { stem in bag.weights.reduce(Float(0)) { $0 + $1[stem] } }
    for start in stride(from: 0, to: statistics.samples, by: step) {
        let count = min(step, statistics.samples - start)
        var mixed = Block(rows: rows, samples: count)
        for (member, weights) in bag.weights.enumerated() {
            var shifted = Block(rows: rows, samples: count)
            for (owner, pass) in passes where owner == member {
                let block = try await pass.read(count)
                for i in shifted.values.indices {
                    shifted.values[i] += block.values[i]
                }
            }
            for row in 0..<rows {
                for i in row * count..<(row + 1) * count {
                    mixed.values[i] += shifted.values[i] / Float(shifts) * weights[row / audio.channels]
                }
            }
        }
        for row in 0..<rows {
            for i in row * count..<(row + 1) * count {
                mixed.values[i] = statistics.restored(mixed.values[i] / totals[row / audio.channels])
            }
        }
        for (stem, writer) in writers.enumerated() {
            let size = audio.channels * count
            try writer.write(mixed.values[stem * size..<(stem + 1) * size])
        }
    }
    try Task.checkCancellation()
    for writer in writers {
        try writer.finish()
    }
    return Dictionary(uniqueKeysWithValues: zip(audio.stems, files))
}
