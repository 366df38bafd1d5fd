import Foundation

/// A WAV file: 16, 24 or 32 bit integers, or 32 bit floats, of any number of channels. It is read piece by piece.
public struct WaveFile: SoundFile {
    public let samplerate: Int
    public let channels: Int
    public let frames: Int
    private let file: OpenFile
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
        file = try OpenFile(path)
        let size = file.size
        guard size >= 12 else { throw fault("must be a WAV file", "\(size) bytes") }
        let beginning = try file.read(0, 12)
        guard beginning.starts(with: "RIFF".utf8), beginning[8...].elementsEqual("WAVE".utf8) else {
            throw fault("must be a WAV file", "one that begins otherwise")
        }
        var format: (tag: Int, channels: Int, samplerate: Int, bits: Int)?
        var place = 12
        while place + 8 <= size {
            let chunk = try file.read(place, 8)
            let (name, length) = (String(decoding: chunk[..<4], as: UTF8.self), chunk.number(4, bytes: 4))
            place += 8
            if name == "fmt ", length >= 16, place + min(length, 26) <= size {
                let content = try file.read(place, min(length, 26))
                var tag = content.number(0, bytes: 2)
                if tag == 0xfffe, length >= 26 { tag = content.number(24, bytes: 2) }  // extensible
                format = (
                    tag, content.number(2, bytes: 2), content.number(4, bytes: 4), content.number(14, bytes: 2)
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
                frames = length / (width * channels)
                guard length <= size - place else {
                    let held = (size - place) / (width * channels)
                    throw fault("must hold the \(frames) samples that its header promises", "\(held)")
                }
                return
            }
            place += length + length % 2
        }
        throw fault("must hold samples", "no data")
    }

    public func read(_ range: Range<Int>) throws(HostError) -> [Float] {
        var values = [Float](repeating: 0, count: range.count * channels)
        let frame = width * channels
        let bytes = try file.read(start + range.lowerBound * frame, range.count * frame)
        bytes.withUnsafeBytes { bytes in
            for i in 0..<range.count {
                for channel in 0..<channels {
                    values[channel * range.count + i] = sample(bytes, (i * channels + channel) * width)
                }
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

extension [UInt8] {
    /// A little-endian number.
    fileprivate func number(_ place: Int, bytes: Int) -> Int {
        (0..<bytes).reduce(0) { $0 | Int(self[place + $1]) << (8 * $1) }
    }
}

/// A file that is read at any place, by any number of tasks.
private final class OpenFile: Sendable {
    let size: Int
    private let descriptor: Int32
    private let name: String

    init(_ path: URL) throws(HostError) {
        name = path.lastPathComponent
        descriptor = open(path.path, O_RDONLY | O_NONBLOCK)
        var status = stat()
        let isOpen = descriptor >= 0 && fstat(descriptor, &status) == 0
        size = isOpen ? Int(status.st_size) : 0
        guard isOpen, status.st_mode & S_IFMT == S_IFREG else {
            throw .audio(
                invariant: "\(name) must be a readable file",
                received: isOpen ? "something that is no file" : String(cString: strerror(errno)),
                fix: "Give the path of a song.")
        }
    }

    deinit {
        if descriptor >= 0 { close(descriptor) }
    }

    /// Bytes from a place on.
    func read(_ place: Int, _ count: Int) throws(HostError) -> [UInt8] {
        var done = 0
        var isWhole = true
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            while done < count {
                let got = pread(descriptor, buffer.baseAddress! + done, count - done, off_t(place + done))
                guard got > 0 else {
                    isWhole = false
                    break
                }
                done += got
            }
            initialized = done
        }
        guard isWhole else {
            throw .audio(
                invariant: "\(name) must stay as it is while it is read", received: "\(done) of \(count) bytes",
                fix: "Separate a copy of it.")
        }
        return bytes
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
