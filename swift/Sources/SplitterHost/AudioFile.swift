import Foundation
import SplitterBundle

#if canImport(AVFoundation)
    import AVFoundation

    /// A sound file in any format that the system decodes, at its own sample rate. **Not compiled or run off Apple's
    /// systems**, for which there is no AVFoundation.
    public final class AudioFile: SoundFile, @unchecked Sendable {  // the file is touched under the lock only
        public let samplerate: Int
        public let channels: Int
        public let frames: Int
        private let file: AVAudioFile
        private let name: String
        private let lock = NSLock()

        /// - Throws: `HostError.audio`.
        public init(_ path: URL) throws(HostError) {
            name = path.lastPathComponent
            do {
                file = try AVAudioFile(forReading: path)
            } catch {
                throw Self.fault(path, "must be a sound file that this system reads", error)
            }
            samplerate = Int(file.processingFormat.sampleRate)
            channels = Int(file.processingFormat.channelCount)
            frames = Int(file.length)
        }

        public func read(_ range: Range<Int>) throws(HostError) -> [Float] {
            lock.lock()
            defer { lock.unlock() }
            var values = [Float](repeating: 0, count: range.count * channels)
            var done = 0
            file.framePosition = AVAudioFramePosition(range.lowerBound)
            while done < range.count {  // a read may give less than was asked for
                guard let part = try Self.piece(of: file, range.count - done, name), part.frameLength > 0,
                    let samples = part.floatChannelData
                else {
                    throw .audio(
                        invariant: "\(name) must hold \(frames) samples",
                        received: "none after \(range.lowerBound + done)", fix: "Export it again.")
                }
                let count = min(Int(part.frameLength), range.count - done)
                for channel in 0..<channels {
                    for i in 0..<count {
                        values[channel * range.count + done + i] = samples[channel][i]
                    }
                }
                done += count
            }
            return values
        }

        /// Write a stem's WAV file again in another format, piece by piece.
        ///
        /// - Parameter settings: As AVFoundation takes them, e.g. `[AVFormatIDKey: kAudioFormatAppleLossless]` with the
        ///   rate and the number of channels.
        /// - Throws: `HostError.audio`; then there is no file of that name.
        public static func convert(_ wave: URL, to path: URL, settings: [String: Any]) throws(HostError) {
            let aside = path.deletingLastPathComponent()
                .appendingPathComponent(".\(UUID().uuidString).\(path.lastPathComponent)")
            defer { try? FileManager.default.removeItem(at: aside) }  // where it has not got its name
            do {
                let source = try AVAudioFile(forReading: wave)
                var target: AVAudioFile? = try AVAudioFile(forWriting: aside, settings: settings)
                while source.framePosition < source.length {
                    guard let part = try piece(of: source, 1 << 16, wave.lastPathComponent) else { break }
                    try target?.write(from: part)
                }
                target = nil  // which completes the file
                try FileManager.default.moveItem(at: aside, to: path)
            } catch let error as HostError {
                throw error
            } catch {
                throw fault(path, "must be written", error)
            }
        }

        private static func piece(
            of file: AVAudioFile, _ count: Int, _ name: String
        ) throws(HostError) -> AVAudioPCMBuffer? {
            let capacity = AVAudioFrameCount(count)
            guard let buffer = AVAudioPCMBuffer(pcmFormat: file.processingFormat, frameCapacity: capacity) else {
                return nil
            }
            do {
                try file.read(into: buffer, frameCount: capacity)
            } catch {
                throw .audio(
                    invariant: "\(name) must be readable to its end", received: "\(error)", fix: "Export it again.")
            }
            return buffer
        }

        private static func fault(_ path: URL, _ invariant: String, _ error: any Error) -> HostError {
            .audio(
                invariant: "\(path.lastPathComponent) \(invariant)", received: "\(error)",
                fix: "Export it as WAV, 44.1 kHz, 16 or 24 bits.")
        }
    }
#endif

/// A song from a file: WAV anywhere, and whatever else the system decodes where it has AVFoundation.
///
/// - Throws: `HostError.audio`.
public func song(at path: URL) throws(HostError) -> any SoundFile {
    #if canImport(AVFoundation)
        if path.pathExtension.lowercased() != "wav" { return try AudioFile(path) }
    #endif
    return try WaveFile(path)
}
