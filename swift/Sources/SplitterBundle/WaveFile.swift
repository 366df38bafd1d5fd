import Foundation

/// A WAV file: 16, 24 or 32 bit integers, or 32 bit floats, of any number of channels.
public struct WaveFile: SoundFile {
    public let samplerate: Int
    public let channels: Int
    public let frames: Int
    private let file: MappedFile
    private let start: Int
    private let width: Int  // bytes of a sample
    private let isFloat: Bool

    /// Read the header.
    ///
    /// - Throws: `HostError.audio`, also where the file is shorter than its header says.
    public init(_ path: URL) throws(HostError) {
        func fault(_ invariant: String, _ received: String) -> HostError {
            .audio(
                invariant: "\(path.lastPathComponent) \(invariant)", received: received,
                fix: "Export it again as WAV, 44.1 kHz, 16 or 24 bits.")
        }
        do {
            file = try MappedFile(path)
        } catch {
            throw .audio(
                invariant: "\(path.lastPathComponent) must be a readable file", received: error.parts.received,
                fix: "Give the path of a song.")
        }
        let bytes = file.bytes
        func text(_ place: Int) -> String { String(decoding: bytes[place..<place + 4], as: UTF8.self) }
        func number<Number: FixedWidthInteger>(_ place: Int, _: Number.Type) -> Int {
            Int(Number(littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: Number.self)))
        }
        guard bytes.count >= 12, text(0) == "RIFF", text(8) == "WAVE" else {
            throw fault("must be a WAV file", "one that begins otherwise")
        }
        var format: (tag: Int, channels: Int, samplerate: Int, bits: Int)?
        var place = 12
        while place + 8 <= bytes.count {
            let (name, size) = (text(place), number(place + 4, UInt32.self))
            place += 8
            if name == "fmt ", size >= 16, place + size <= bytes.count {
                var tag = number(place, UInt16.self)
                if tag == 0xfffe, size >= 26 { tag = number(place + 24, UInt16.self) }  // extensible
                format = (
                    tag, number(place + 2, UInt16.self), number(place + 4, UInt32.self), number(place + 14, UInt16.self)
                )
            }
            if name == "data" {
                guard let format, format.channels > 0, format.samplerate > 0 else {
                    throw fault("must say what its samples are", "no format before them")
                }
                guard [1: [16, 24, 32], 3: [32]][format.tag]?.contains(format.bits) == true else {
                    throw fault(
                        "must hold 16, 24 or 32 bit integers or 32 bit floats",
                        "format \(format.tag), \(format.bits) bits")
                }
                (samplerate, channels, width) = (format.samplerate, format.channels, format.bits / 8)
                (isFloat, start) = (format.tag == 3, place)
                frames = size / (width * channels)
                guard size <= bytes.count - place else {
                    let held = (bytes.count - place) / (width * channels)
                    throw fault("must hold the \(frames) samples that its header promises", "\(held)")
                }
                return
            }
            place += size + size % 2
        }
        throw fault("must hold samples", "no data")
    }

    public func read(_ range: Range<Int>) throws(HostError) -> [Float] {
        var values = [Float](repeating: 0, count: range.count * channels)
        let bytes = file.bytes
        for i in 0..<range.count {
            for channel in 0..<channels {
                let place = start + ((range.lowerBound + i) * channels + channel) * width
                values[channel * range.count + i] = sample(bytes, place)
            }
        }
        return values
    }

    private func sample(_ bytes: UnsafeRawBufferPointer, _ place: Int) -> Float {
        switch width {
        case 2: return Float(Int16(littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: Int16.self))) / 32_768
        case 3:
            let low = UInt32(bytes[place]) << 8 | UInt32(bytes[place + 1]) << 16 | UInt32(bytes[place + 2]) << 24
            return Float(Int32(bitPattern: low)) / 2_147_483_648
        default:
            let bits = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: UInt32.self))
            return isFloat ? Float(bitPattern: bits) : Float(Int32(bitPattern: bits)) / 2_147_483_648
        }
    }
}

/// Writes a WAV file of 32 bit floats, aside: it gets its name when it is finished.
final class WaveWriter {
    private let path: URL
    private let aside: URL
    private let handle: FileHandle
    private let channels: Int

    /// - Throws: `HostError.audio` if the file cannot be written, or a WAV file cannot hold as much.
    init(_ path: URL, samplerate: Int, channels: Int, frames: Int) throws(HostError) {
        let size = frames.multipliedReportingOverflow(by: 4 * channels)
        guard !size.overflow, size.partialValue < Int(UInt32.max) - 36 else {
            throw .audio(
                invariant: "a WAV file holds less than 4 GiB", received: "\(frames) samples of \(channels) channels",
                fix: "Cut the song in parts.")
        }
        (self.path, self.channels) = (path, channels)
        aside = path.deletingLastPathComponent().appendingPathComponent(
            ".\(path.lastPathComponent).\(UUID().uuidString)")
        var header = Data("RIFF".utf8)
        func append(_ number: Int, bytes: Int) {
            withUnsafeBytes(of: UInt32(number).littleEndian) { header.append(contentsOf: $0.prefix(bytes)) }
        }
        append(36 + size.partialValue, bytes: 4)
        header.append(Data("WAVEfmt ".utf8))
        for (number, bytes) in [
            (16, 4), (3, 2), (channels, 2), (samplerate, 4), (4 * channels * samplerate, 4), (4 * channels, 2), (32, 2),
        ] {
            append(number, bytes: bytes)
        }
        header.append(Data("data".utf8))
        append(size.partialValue, bytes: 4)
        do {
            try header.write(to: aside)
            handle = try FileHandle(forUpdating: aside)
            try handle.seekToEnd()
        } catch {
            throw Self.fault(path, error)
        }
    }

    /// Append samples, one channel after the other.
    func write(_ values: ArraySlice<Float>) throws(HostError) {
        let (count, first) = (values.count / channels, values.startIndex)
        let interleaved = (0..<values.count).map { values[first + $0 % channels * count + $0 / channels] }
        do {
            try handle.write(contentsOf: interleaved.withUnsafeBytes { Data($0) })
        } catch {
            throw Self.fault(path, error)
        }
    }

    /// Give the file its name.
    func finish() throws(HostError) {
        do {
            try handle.close()
            guard rename(aside.path, path.path) == 0 else { throw CocoaError(.fileWriteUnknown) }
        } catch {
            throw Self.fault(path, error)
        }
    }

    deinit {
        try? handle.close()
        try? FileManager.default.removeItem(at: aside)  // where it has not got its name
    }

    private static func fault(_ path: URL, _ error: any Error) -> HostError {
        .audio(
            invariant: "\(path.lastPathComponent) must be written", received: "\(error)",
            fix: "Look at the folder's rights and at the disk's free space.")
    }
}
