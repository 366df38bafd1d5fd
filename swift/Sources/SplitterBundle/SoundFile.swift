/// Sound that can be read anywhere, more than once.
public protocol SoundFile: Sendable {
    /// In Hz.
    var samplerate: Int { get }
    var channels: Int { get }
    /// Samples of each channel.
    var frames: Int { get }

    /// Samples `range` of every channel, one channel after the other; `range` lies inside the sound.
    ///
    /// - Throws: `HostError.audio`.
    func read(_ range: Range<Int>) throws(HostError) -> [Float]
}

/// Of the mono mixdown of a whole song, in double precision: what sound is normalised by before a model hears it.
public struct Statistics: Sendable, Equatable {
    public let samples: Int
    public let mean: Double
    /// With Bessel's correction, kept from zero as demucs keeps it.
    public let scale: Double
    /// Whether the model hears the song normalised; as it is otherwise.
    public let isApplied: Bool

    private static let block = 1 << 16  // samples

    /// Read a song once.
    ///
    /// - Throws: `HostError.audio` if it is empty or cannot be read, or holds what is not finite.
    public init(_ sound: any SoundFile, isApplied: Bool = true) throws(HostError) {
        (samples, self.isApplied) = (sound.frames, isApplied)
        guard samples > 0 else {
            throw .audio(invariant: "a song must have a sample", received: "none", fix: "Export it again.")
        }
        var (total, squares) = (0.0, 0.0)
        var shift: Double?  // a sample near the mean keeps the squares from cancelling
        for start in stride(from: 0, to: samples, by: Self.block) {
            let count = min(Self.block, samples - start)
            let values = try sound.read(start..<start + count)
            for i in 0..<count {
                let sum = (0..<sound.channels).reduce(0.0) { $0 + Double(values[$1 * count + i]) }
                let mono = sum / Double(sound.channels)
                let centred = mono - (shift ?? mono)
                shift = shift ?? mono
                total += centred
                squares += centred * centred
            }
        }
        let count = Double(samples)
        let variance = samples > 1 ? max(0, (squares - total * total / count) / (count - 1)) : 0
        mean = (shift ?? 0) + total / count
        scale = variance.squareRoot() + 1e-8
        guard mean.isFinite, scale.isFinite else {
            throw .audio(
                invariant: "a song's samples must be finite", received: "NaN or infinity", fix: "Export it again.")
        }
    }

    public func normalised(_ sample: Float) -> Float {
        isApplied ? Float((Double(sample) - mean) / scale) : sample
    }

    public func restored(_ sample: Float) -> Float { isApplied ? sample * Float(scale) + Float(mean) : sample }
}
