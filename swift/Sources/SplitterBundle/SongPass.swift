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
    /// Samples over which a chunk's weight rises and falls; a triangle where nil.
    let fade: Int?
    /// Whether the song's mirror image lies around it.
    let reflects: Bool

    /// - Parameters:
    ///   - overlap: Fraction of a chunk shared with the next one; the model's own where nil.
    ///   - segment: Seconds of the song in one run; all the model takes where nil.
    /// - Throws: `HostError.usage` for a number out of range.
    init(_ audio: AudioRecord, overlap: Double?, segment: Double?) throws(HostError) {
        guard overlap.map((0..<1).contains) ?? true else {
            throw .usage(
                invariant: "the overlap must be at least 0 and less than 1", received: "\(overlap ?? 0)",
                fix: "The usual one is 0.25.")
        }
        let chunking = audio.chunking ?? Chunking()
        model = audio.samples
        let longest = Double(model) / Double(audio.samplerate)
        chunk = segment.map { $0 > 0 ? Int(min($0, 2 * longest) * Double(audio.samplerate)) : 0 } ?? model
        guard model <= chunk * 10, chunk <= model else {
            throw .usage(
                invariant: "the segment must be at least \(longest / 10) s and at most the bundle's \(longest) s",
                received: "\(segment ?? 0) s", fix: "A longer one takes another bundle.")
        }
        if overlap == nil, let stride = chunking.stride {
            self.stride = stride * chunk / model
        } else {
            stride = Int((1 - (overlap ?? 0.25)) * Double(chunk))
        }
        guard stride * 101 >= chunk else {
            throw .usage(
                invariant: "chunks must move forward, by an overlap of at most 0.99", received: "\(overlap ?? 0)",
                fix: "The usual one is 0.25.")
        }
        maxShift = audio.samplerate / 2
        let length = chunk
        fade = chunking.fade.map { max(1, $0 * length / audio.samples) }
        reflects = chunking.edges == .reflection
    }

    /// How often the model runs in one pass: for all but the mirror image behind the song, which nobody hears.
    func runs(_ samples: Int, offset: Int?) -> Int {
        (length(samples, offset: offset) - mirrored(samples) + stride - 1) / stride
    }

    /// Length of what a pass sees: the song, with its mirror images, or the silence that a shift leaves before it.
    func length(_ samples: Int, offset: Int?) -> Int {
        samples + 2 * mirrored(samples) + (offset.map { maxShift - $0 } ?? 0)
    }

    /// Length of the mirror image before a song, and of that behind it.
    func mirrored(_ samples: Int) -> Int {
        reflects && samples > 2 * (chunk - stride) ? chunk - stride : 0
    }

    /// Of the samples of a chunk.
    var weights: [Float] {
        guard let fade else {
            let largest = Float(chunk - chunk / 2)
            return (0..<chunk).map { Float($0 < chunk / 2 ? $0 + 1 : chunk - $0) / largest }
        }
        let last = Double(max(1, fade - 1))
        var weights = [Float](repeating: 1, count: chunk)
        for i in 0..<fade {
            weights[i] = Float(Double(i) / last)
        }
        for i in 0..<fade {  // falls where both meet
            weights[chunk - fade + i] = fade == 1 ? 1 : Float(1 - Double(i) / last)
        }
        return weights
    }
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
/// Chunks of one segment every stride are weighted, summed and divided by the summed weights. What weighs them and what
/// lies around the song is the model's own. In silence the last, shorter chunk lies in the middle of real sound, and a
/// shifted pass starts before the song; with mirror images the last chunks begin a run, which their own mirror image
/// fills where they fill more than half.
final class SongPass {
    typealias Model = (Tensor) async throws -> Tensor

    private let sound: any SoundFile
    private let statistics: Statistics
    private let geometry: Geometry
    private let channels: Int
    private let model: Model
    private let advanced: () -> Void
    private let length: Int
    private let before: Int  // virtual samples before the song
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
        before = length - statistics.samples - geometry.mirrored(statistics.samples)
        skip = before
        let chunk = geometry.chunk
        weight = geometry.weights
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
        let lead = geometry.reflects ? 0 : (chunk - count) / 2
        let isLast = position + stride >= length
        let separated = try await model(
            geometry.reflects
                ? mirrored(from: position - before, count) : mix(from: position - lead - before, chunk))
        guard separated.count == sum.rows * geometry.model else {
            throw HostError.boundary(
                invariant: "the model must give \(sum.rows) rows of \(geometry.model) samples",
                received: "\(separated.shape)", fix: "Give the models of this bag.")
        }
        let weight = faded(isFirst: position == 0, isLast: isLast)
        for row in 0..<sum.rows {
            for i in 0..<count {
                sum.values[row * chunk + i] += weight[i] * separated.values[row * geometry.model + lead + i]
            }
        }
        for i in 0..<count {
            weights[i] += weight[i]
        }
        advanced()
        let finished = isLast ? count : stride
        var block = sum.sliced(0..<finished)
        for row in 0..<block.rows {
            for i in 0..<finished {
                block.values[row * finished + i] /= weights[i] == 0 ? 1 : weights[i]  // where it is 0, the sum is too
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

    /// The weights of a chunk; nothing comes before the first one, or after the last.
    private func faded(isFirst: Bool, isLast: Bool) -> [Float] {
        guard let fade = geometry.fade, isFirst || isLast else { return weight }
        var weights = weight
        weights.replaceSubrange(
            isFirst ? 0..<fade : weights.count - fade..<weights.count, with: [Float](repeating: 1, count: fade))
        return weights
    }

    /// What the model hears of a song with its mirror images; the sample at each end is not repeated.
    private func mirrored(from start: Int, _ count: Int) throws(HostError) -> Tensor {
        let (samples, chunk, model) = (statistics.samples, geometry.chunk, geometry.model)
        func place(_ i: Int) -> Int {  // of the song's sample that is heard at one of the chunk
            let virtual = start + i
            return virtual < 0 ? -virtual : virtual < samples ? virtual : 2 * (samples - 1) - virtual
        }
        let filled = count > chunk / 2 ? chunk : count
        let places = (0..<filled).map { place($0 < count ? $0 : 2 * (count - 1) - $0) }
        let first = places.min() ?? 0
        let heard = try mix(from: first, (places.max() ?? 0) - first + 1)
        var values = [Float](repeating: 0, count: channels * model)
        for channel in 0..<channels {
            for (i, place) in places.enumerated() {
                values[channel * model + i] = heard.values[channel * model + place - first]
            }
        }
        return Tensor(shape: [1, channels, model], values: values)
    }

    /// What the model hears of some samples from a place of the song on; silence outside of it stays exactly zero.
    private func mix(from start: Int, _ count: Int) throws(HostError) -> Tensor {
        var values = [Float](repeating: 0, count: channels * geometry.model)
        let inside = max(0, start)..<max(0, start, min(statistics.samples, start + count))
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
