import XCTest

@testable import SplitterBundle
@testable import SplitterHost

/// Sound in memory.
struct Samples: SoundFile {
    var samplerate = 44_100
    let channels: Int
    let values: [Float]
    var frames: Int { values.count / channels }

    func read(_ range: Range<Int>) throws(HostError) -> [Float] {
        (0..<channels).flatMap { values[$0 * frames + range.lowerBound..<$0 * frames + range.upperBound] }
    }
}

final class SeparationTests: XCTestCase {
    private let audio = AudioRecord(
        stems: ["first", "second"], samplerate: 44_100, channels: 1, samples: 4_000, chunking: Chunking())

    private func sound(_ count: Int) -> Samples {
        Samples(channels: 1, values: (0..<count).map { Float(sin(0.01 * Double($0))) * 0.3 + 0.1 })
    }

    /// A model that gives what it hears must give the song back, whatever the chunks are.
    func testWhatAllChunksGiveIsWovenTogether() async throws {
        for (count, shifts, overlap) in [(10_123, 0, 0.25), (10_123, 2, 0.5), (500, 1, 0.25), (4_000, 1, 0.0)] {
            let song = sound(count)
            var random = PythonRandom(seed: 1)
            let statistics = try Statistics(song)
            let geometry = try Geometry(audio, overlap: overlap, segment: nil)
            for offset in shifts == 0 ? [nil] : (0..<shifts).map({ _ in Optional(random.integer(upTo: 22_050)) }) {
                var runs = 0
                let pass = SongPass(
                    song, statistics, geometry, rows: 2, channels: 1, offset: offset, advanced: { runs += 1 },
                    model: { Tensor(shape: [1, 2, 1, 4_000], values: $0.values + $0.values.map { -$0 }) })
                let first = try await pass.read(count / 3)
                let rest = try await pass.read(count - count / 3)
                XCTAssertEqual(runs, geometry.runs(count, offset: offset))
                for i in 0..<count {
                    let (block, at) = i < count / 3 ? (first, i) : (rest, i - count / 3)
                    let expected = statistics.normalised(song.values[i])
                    XCTAssertEqual(block.values[at], expected, accuracy: 2e-6, "\(count) \(shifts) \(i)")
                    XCTAssertEqual(block.values[block.samples + at], -expected, accuracy: 2e-6)
                }
            }
        }
    }

    /// The same with fading chunks and mirror images, and a song as it is.
    func testFadingChunksAreWovenTogether() async throws {
        var chunking = Chunking()
        (chunking.normalised, chunking.stride, chunking.fade) = (false, 1_000, 400)
        chunking.edges = .reflection
        let audio = AudioRecord(
            stems: ["only"], samplerate: 44_100, channels: 1, samples: 4_000, chunking: chunking)
        for count in [10_123, 6_001, 6_000, 3_999, 500] {
            let song = sound(count)
            let statistics = try Statistics(song, isApplied: false)
            let geometry = try Geometry(audio, overlap: nil, segment: nil)
            var heard: [Float] = []
            let pass = SongPass(
                song, statistics, geometry, rows: 1, channels: 1, offset: nil, advanced: {},
                model: {
                    heard = heard.isEmpty ? $0.values : heard
                    return $0
                })
            let result = try await pass.read(count)
            for i in 0..<count {
                XCTAssertEqual(result.values[i], song.values[i], accuracy: 1e-6, "\(count) \(i)")
            }
            if count > 6_000 {  // twice the overlap: the mirror image is heard first
                XCTAssertEqual(Array(heard[..<3_000]), (1...3_000).reversed().map { song.values[$0] })
            } else {
                XCTAssertEqual(heard[0], song.values[0])
            }
        }
    }

    func testOptionsOutOfRangeAreRefused() async {
        for (overlap, segment) in [(1.0, nil), (-0.1, nil), (0.995, nil), (0.25, 0.001), (0.25, 1), (0.25, .nan)] {
            await assertThrows(.usage, "must") { _ = try Geometry(audio, overlap: overlap, segment: segment) }
        }
    }

    func testShiftsAreThoseOfPython() {
        var random = PythonRandom(seed: 0)
        XCTAssertEqual(
            (0..<6).map { _ in random.integer(upTo: 22_050) }, [12_623, 13_781, 1_326, 8_484, 16_753, 15_922])
        random = PythonRandom(seed: 3)
        XCTAssertEqual((0..<701).map { _ in random.integer(upTo: 22_050) }.last, 20_763)
    }

    func testWaveFilesAreReadAndWritten() async throws {
        let folder = try scratch(self)
        let path = folder.appendingPathComponent("song.wav")
        let values: [Float] = [0.5, -0.25, 1.5, 0, 0.125, -1]
        let writer = try WaveWriter(path, samplerate: 48_000, channels: 2, frames: 3)
        try writer.write(values[...])
        XCTAssertFalse(FileManager.default.fileExists(atPath: path.path))  // not before it is whole
        try writer.finish()
        let file = try WaveFile(path)
        XCTAssertEqual(file.samplerate, 48_000)
        XCTAssertEqual(file.channels, 2)
        XCTAssertEqual(try file.read(0..<3), values)
        XCTAssertEqual(try file.read(1..<2), [-0.25, 0.125])

        var content = try Data(contentsOf: path)
        try content.dropLast(8).write(to: path)
        await assertThrows(.audio, "song.wav must hold the 3 samples that its header promises; received 2") {
            _ = try WaveFile(path)
        }
        content.replaceSubrange(20..<22, with: [1, 0])  // integers,
        content.replaceSubrange(34..<36, with: [16, 0])  // of 16 bits
        content.replaceSubrange(44..<52, with: [0, 0x80, 0, 0x40, 0xff, 0xff, 0, 0])
        try content.write(to: path)
        XCTAssertEqual(Array(try WaveFile(path).read(0..<2)), [-1, -1 / Float(32_768), 0.5, 0])
        try Data("RIFF".utf8).write(to: path)
        await assertThrows(.audio, "must be a WAV file") { _ = try WaveFile(path) }
        await assertThrows(.audio, "must be a readable file") { _ = try WaveFile(folder) }
    }

    func testASeparationThatIsDroppedWritesNothing() async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        addTeardownBlock { try FileManager.default.removeItem(at: folder) }
        let separator = try await Separator(Bag(demoBundle()))
        let song = Samples(channels: 2, values: [Float](repeating: 0.1, count: 400_000))
        for try await progress in separator.separate(song, into: folder) where progress.done > 0 {
            break  // the sequence ends here, and with it the work
        }
        try await Task.sleep(for: .seconds(1))
        for _ in 0..<100 where try !FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty {
            try await Task.sleep(for: .milliseconds(300))
        }
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder.path), [])
    }

    func testModelsThatGiveTooLittleAreRefused() async throws {
        let (song, bag) = (Samples(channels: 2, values: [0, 0, 0, 0]), try Bag(demoBundle()))
        await assertThrows(.boundary, "the model must give 8 rows of 66150 samples") {
            _ = try await separate(song, bag, [{ $0 }], into: scratch(self), options: SeparationOptions()) { _ in }
        }
    }

    /// A published port got corrupted results from two predictions on one model: here each segment serves one at a time.
    func testFiftySeparationsAtOnceAreThoseOfOneAfterTheOther() async throws {
        let separator = try await Separator(Bag(sixStemBundle()))
        let home = try scratch(self)
        let songs = (0..<5).map { number in
            Samples(
                samplerate: 8_000, channels: 2,
                values: (0..<6_000).map { Float(sin(Double($0 * (number + 1)) * 0.01)) })
        }
        @Sendable func stems(_ song: Samples, _ name: String) async throws -> [Data] {
            let folder = home.appendingPathComponent(name)
            var options = SeparationOptions()
            options.shifts = 0
            for try await _ in separator.separate(song, into: folder, options: options) {}
            return try separator.bag.audio.stems.map {
                try Data(contentsOf: folder.appendingPathComponent("\($0).wav"))
            }
        }
        var alone: [[Data]] = []
        for (number, song) in songs.enumerated() {
            alone.append(try await stems(song, "alone \(number)"))
        }
        XCTAssertEqual(Set(alone.flatMap { $0 }).count, 30)
        try await withThrowingTaskGroup(of: (Int, [Data]).self) { group in
            for run in 0..<50 {
                group.addTask { (run % 5, try await stems(songs[run % 5], "at once \(run)")) }
            }
            for try await (number, found) in group {
                XCTAssertEqual(found, alone[number])
            }
        }
    }

    #if os(Linux)
        /// Resident memory of this process, in bytes.
        private var resident: Int {
            let pages = try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8).split(separator: " ")[1]
            return (pages.flatMap { Int($0) } ?? 0) * Int(getpagesize())
        }

        func testMemoryDoesNotGrowWithTheSong() async throws {
            let folder = try scratch(self)
            let bag = try Bag(demoBundle())
            var peaks: [Int] = []
            for seconds in [20, 20, 200] {  // the first run warms up
                let path = folder.appendingPathComponent("song.wav")
                let writer = try WaveWriter(path, samplerate: 44_100, channels: 2, frames: seconds * 44_100)
                let second = (0..<88_200).map { Float(sin(0.01 * Double($0))) }
                for _ in 0..<seconds {
                    try writer.write(second[...])
                }
                try writer.finish()
                var peak = 0
                _ = try await separate(
                    WaveFile(path), bag,
                    [{ Tensor(shape: [1, 4, 2, 66_150], values: $0.values + $0.values + $0.values + $0.values) }],
                    into: folder, options: SeparationOptions()
                ) { _ in peak = max(peak, self.resident) }
                peaks.append(peak)
            }
            XCTAssertLessThan(Double(peaks[2]), 1.1 * Double(peaks[1]), "\(peaks)")
        }
    #endif

    func testSongsOfOtherRatesAreRefused() async throws {
        let separator = try await Separator(Bag(demoBundle()))
        let song = Samples(samplerate: 48_000, channels: 2, values: [0, 0, 0, 0])
        await assertThrows(.audio, "must have 44100 Hz and 2 channels") {
            for try await _ in separator.separate(song, into: FileManager.default.temporaryDirectory) {}
        }
    }
}
