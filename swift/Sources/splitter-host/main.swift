import Foundation
import SplitterBundle
import SplitterHost

private let usage = """
    usage: splitter-host verify BUNDLE [--min-db N] [-o FILE]    hold every boundary against the goldens, and write it
           splitter-host dump BUNDLE -o FILE           write every step's result, for `splitter verify-port`
           splitter-host bench BUNDLE [--runs N] [--warmup N]    print the times, for `splitter profile --merge`
           splitter-host separate SONG.wav -b BUNDLE -o FOLDER [--shifts N] [--overlap F] [--segment S] [--seed N]
    options: --compute-units ALL|CPU_ONLY|CPU_AND_GPU|CPU_AND_NE   where Core ML may run
             --storage float|half                                 of the transformer's activations and matrices
    """

/// Words, and options with a value each.
private struct Arguments {
    var words: [String] = []
    var options: [String: String] = [:]

    init(_ arguments: [String], options known: Set<String>) throws(HostError) {
        var rest = arguments[...]
        while let word = rest.popFirst() {
            guard word.hasPrefix("-") else {
                words.append(word)
                continue
            }
            guard known.contains(word), let value = rest.popFirst() else {
                throw .usage(
                    invariant: "options are \(known.sorted().joined(separator: ", ")), each with a value",
                    received: word,
                    fix: usage)
            }
            options[word] = value
        }
    }

    func word(_ index: Int, _ meaning: String) throws(HostError) -> String {
        guard words.indices.contains(index) else {
            throw .usage(invariant: "\(meaning) must be given", received: "nothing", fix: usage)
        }
        return words[index]
    }

    func number(
        _ option: String, default fallback: Double, in range: ClosedRange<Double> = -1e9...1e9
    ) throws(HostError) -> Double {
        guard let text = options[option] else { return fallback }
        guard let number = Double(text), range.contains(number) else {
            throw .usage(invariant: "\(option) takes a number in \(range)", received: text, fix: usage)
        }
        return number
    }

    func units() throws(HostError) -> ComputeUnits { try choice("--compute-units", default: .all) }

    func storage() throws(HostError) -> KernelStorage { try choice("--storage", default: .float) }

    private func choice<Choice: CaseIterable & RawRepresentable>(
        _ option: String, default fallback: Choice
    ) throws(HostError) -> Choice where Choice.RawValue == String {
        guard let text = options[option] else { return fallback }
        guard let choice = Choice(rawValue: text) else {
            throw .usage(
                invariant: "\(option) takes \(Choice.allCases.map(\.rawValue).joined(separator: ", "))",
                received: text, fix: usage)
        }
        return choice
    }
}

/// On standard error, where no result goes.
private func say(_ message: String) { FileHandle.standardError.write(Data("\(message)\n".utf8)) }

private func run(_ command: String, _ given: [String]) async throws {
    switch command {
    case "verify":
        let arguments = try Arguments(given, options: ["--min-db", "-o", "--compute-units", "--storage"])
        let bundle = try BundleReader(URL(fileURLWithPath: arguments.word(0, "a bundle")))
        let limit = try arguments.number("--min-db", default: 110)
        let results = try await verify(bundle, units: arguments.units(), storage: arguments.storage())
        if let path = arguments.options["-o"] {
            try Safetensors.write(
                results.map { Tap(name: $0.name, tensor: $0.tensor) }, format: "splitter.boundaries/1",
                to: URL(fileURLWithPath: path))
        }
        for result in results {
            let decibels = result.parity.decibels.map { $0.isInfinite ? "equal" : String(format: "%.1f dB", $0) }
            print(
                "\(result.producer)  \(result.name)  \(decibels ?? "n/a (silent)")  max |Δ| \(result.parity.largestDifference)"
            )
        }
        let failed = results.filter { !$0.parity.reaches(limit, negligible: bundle.manifest.plan.negligible) }
        guard failed.isEmpty else {
            throw HostError.boundary(
                invariant: "every boundary must reach \(limit) dB",
                received: failed.map(\.name).joined(separator: ", "),
                fix: "`dump` and `splitter verify-port` find the step.")
        }
    case "dump":
        let arguments = try Arguments(given, options: ["-o"])
        guard let path = arguments.options["-o"] else {
            throw HostError.usage(invariant: "-o FILE must be given", received: "nothing", fix: usage)
        }
        let bundle = try BundleReader(URL(fileURLWithPath: arguments.word(0, "a bundle")))
        try await Safetensors.write(taps(bundle), format: "splitter.taps/1", to: URL(fileURLWithPath: path))
    case "bench":
        let arguments = try Arguments(given, options: ["--runs", "--warmup", "--compute-units", "--storage"])
        let bundle = try BundleReader(URL(fileURLWithPath: arguments.word(0, "a bundle")))
        let bench = try await Bench(
            bundle, runs: Int(arguments.number("--runs", default: 5, in: 0...1e6)),
            warmup: Int(arguments.number("--warmup", default: 1, in: 0...1e6)), units: arguments.units(),
            storage: arguments.storage()
        ) { say($0) }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        print(String(decoding: try encoder.encode(bench), as: UTF8.self))
    case "separate":
        let arguments = try Arguments(
            given,
            options: ["-b", "-o", "--shifts", "--overlap", "--segment", "--seed", "--compute-units", "--storage"])
        guard let bundle = arguments.options["-b"], let out = arguments.options["-o"] else {
            throw HostError.usage(invariant: "-b BUNDLE and -o FOLDER must be given", received: "less", fix: usage)
        }
        var options = SeparationOptions()
        if arguments.options["--shifts"] != nil {
            options.shifts = Int(try arguments.number("--shifts", default: 1, in: 0...1000))
        }
        options.overlap = arguments.options["--overlap"] == nil ? nil : try arguments.number("--overlap", default: 0)
        options.segment = arguments.options["--segment"] == nil ? nil : try arguments.number("--segment", default: 0)
        options.seed = UInt32(try arguments.number("--seed", default: 0, in: 0...Double(UInt32.max)))
        let song = try song(at: URL(fileURLWithPath: arguments.word(0, "a song")))
        let separator = try await Separator(
            Bag(URL(fileURLWithPath: bundle)), units: arguments.units(), storage: arguments.storage())
        for try await progress in separator.separate(song, into: URL(fileURLWithPath: out), options: options) {
            print(String(format: "%.1f of %.1f s", progress.done, progress.total))
        }
    default:
        throw HostError.usage(invariant: "a command must be one of those below", received: command, fix: usage)
    }
}

do {
    let arguments = CommandLine.arguments.dropFirst()
    guard let command = arguments.first, command != "-h", command != "--help" else {
        print(usage)
        exit(CommandLine.arguments.count > 1 ? 0 : 2)
    }
    try await run(command, Array(arguments.dropFirst()))
} catch {
    say("splitter-host: \(error)")
    exit(1)
}
