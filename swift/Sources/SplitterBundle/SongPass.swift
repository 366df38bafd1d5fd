/// How a song is cut, as `splitter/separation/overlap_add.py` cuts it.
struct Geometry: Sendable {
    /// Samples in one run of the model.
    let model: Int
    /// Samples of the song in one run; the rest is silence.
    let chunk: Int
    /// Samples from one chunk to the next.
    let stride: Int
    /// Longest shift of a shifted pass, half a second.
    let maxShift: Int

    /// - Parameters:
    ///   - overlap: Fraction of a chunk shared with the next one.
    ///   - segment: Seconds of the song in one run; all the model takes where nil.
    /// - Throws: `HostError.usage` for a number out of range.
    init(_ audio: AudioRecord, overlap: Double, segment: Double?) throws(HostError) {
        guard (0..<1).contains(overlap) else {
            throw .usage(
                invariant: "the overlap must be at least 0 and less than 1", received: "\(overlap)",
                fix: "The usual one is 0.25.")
        }
        model = audio.samples
        let longest = Double(model) / Double(audio.samplerate)
        chunk = segment.map { $0 > 0 ? Int(min($0, 2 * longest) * Double(audio.samplerate)) : 0 } ?? model
        guard model <= chunk * 10, chunk <= model else {
            throw .usage(
                invariant: "the segment must be at least \(longest / 10) s and at most the bundle's \(longest) s",
                received: "\(segment ?? 0) s", fix: "A longer one takes another bundle.")
        }
        stride = Int((1 - overlap) * Double(chunk))
        guard stride * 101 >= chunk else {
            throw .usage(
                invariant: "chunks must move forward, by an overlap of at most 0.99", received: "\(overlap)",
                fix: "The usual one is 0.25.")
        }
        maxShift = audio.samplerate / 2
    }

    /// How often the model runs in one pass.
    func runs(_ samples: Int, offset: Int?) -> Int { (length(samples, offset: offset) + stride - 1) / stride }

    /// Length of what a pass sees: the song, with the silence that a shift leaves before it.
    func length(_ samples: Int, offset: Int?) -> Int { samples + (offset.map { maxShift - $0 } ?? 0) }
}

/// Some samples of every stem and channel: row after row.
struct Block {
    let rows: Int
    let samples: Int
    var values: [Float]

    init(rows: Int, samples: Int) {
        (self.rows, self.samples) = (rows, samples)
        values = [Float](repeating: 0, count: rows * samples)
    }

    /// Columns of a range.
    func sliced(_ range: Range<Int>) -> Block {
        var part = Block(rows: rows, samples: range.count)
        for row in 0..<rows {
            for i in 0..<range.count {
                part.values[row * range.count + i] = values[row * samples + range.lowerBound + i]
            }
        }
        return part
    }
}

/// One walk over a song with one model: ask for some samples, and it runs what it needs.
///
/// Chunks of one segment every stride, each weighted with a triangle, summed and divided by the summed weights; the
/// last, shorter chunk lies in the middle of real sound; a shifted pass starts in silence before the song.
final class SongPass {
    typealias Model = (Tensor) async throws -> Tensor

    private let sound: any SoundFile
    private let statistics: Statistics
    private let geometry: Geometry
    private let channels: Int
    private let model: Model
    private let advanced: () -> Void
    private let length: Int
    private let silence: Int  // virtual samples before the song
    private let weight: [Float]
    private var position = 0  // virtual start of the next chunk
    private var sum: Block
    private var weights: [Float]
    private var ready: Block
    private var skip: Int

    /// - Parameters:
    ///   - rows: Stems times channels.
    ///   - offset: Where in the leading silence a shifted pass starts; nil for a plain pass.
    ///   - advanced: Called after every run of the model.
    ///   - model: One run of it, 1 × channels × samples → 1 × stems × channels × samples.
    init(
        _ sound: any SoundFile, _ statistics: Statistics, _ geometry: Geometry, rows: Int, channels: Int, offset: Int?,
        advanced: @escaping () -> Void, model: @escaping Model
    ) {
        (self.sound, self.statistics, self.geometry, self.channels) = (sound, statistics, geometry, channels)
        (self.model, self.advanced) = (model, advanced)
        length = geometry.length(statistics.samples, offset: offset)
        silence = length - statistics.samples
        skip = silence
        let chunk = geometry.chunk
        let largest = Float(chunk - chunk / 2)
        weight = (0..<chunk).map { Float($0 < chunk / 2 ? $0 + 1 : chunk - $0) / largest }
        sum = Block(rows: rows, samples: chunk)
        weights = [Float](repeating: 0, count: chunk)
        ready = Block(rows: rows, samples: 0)
    }

    /// The next samples of every stem, still normalised.
    func read(_ samples: Int) async throws -> Block {
        var result = Block(rows: sum.rows, samples: samples)
        var have = 0
        while have < samples {
            if ready.samples == 0 {
                ready = try await next()
            }
            let count = min(ready.samples, samples - have)
            for row in 0..<sum.rows {
                for i in 0..<count {
                    result.values[row * samples + have + i] = ready.values[row * ready.samples + i]
                }
            }
            ready = ready.sliced(count..<ready.samples)
            have += count
        }
        return result
    }

    /// Run one chunk; return the samples that no later chunk touches.
    private func next() async throws -> Block {
        let (chunk, stride) = (geometry.chunk, geometry.stride)
        let count = min(length - position, chunk)
        let before = (chunk - count) / 2  // a short chunk sits in the middle of real sound
        let separated = try await model(mix(from: position - before - silence))
        for row in 0..<sum.rows {
            for i in 0..<count {
                sum.values[row * chunk + i] += weight[i] * separated.values[row * geometry.model + before + i]
            }
        }
        for i in 0..<count {
            weights[i] += weight[i]
        }
        advanced()
        let finished = position + stride >= length ? count : stride
        var block = sum.sliced(0..<finished)
        for row in 0..<block.rows {
            for i in 0..<finished {
                block.values[row * finished + i] /= weights[i]
            }
        }
        position += stride
        for row in 0..<sum.rows {
            for i in 0..<chunk {
                sum.values[row * chunk + i] = i + stride < chunk ? sum.values[row * chunk + i + stride] : 0
            }
        }
        weights = weights[stride...] + [Float](repeating: 0, count: stride)
        let skipped = min(skip, finished)
        skip -= skipped
        return block.sliced(skipped..<finished)
    }

    /// What the model hears from a place of the song on; silence outside of it stays exactly zero.
    private func mix(from start: Int) throws(HostError) -> Tensor {
        var values = [Float](repeating: 0, count: channels * geometry.model)
        let inside = max(0, start)..<max(0, start, min(statistics.samples, start + geometry.chunk))
        let heard = try sound.read(inside)
        for channel in 0..<channels {
            let source = min(channel, sound.channels - 1)  // mono is heard on every channel
            for i in 0..<inside.count {
                values[channel * geometry.model + inside.lowerBound - start + i] =
                    statistics.normalised(heard[source * inside.count + i])
            }
        }
        return Tensor(shape: [1, channels, geometry.model], values: values)
    }
}
