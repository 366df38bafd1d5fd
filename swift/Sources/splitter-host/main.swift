import Foundation
import SplitterBundle
import SplitterHost

private let usage = """
    usage: splitter-host verify BUNDLE [--min-db N]    hold every boundary against the bundle's goldens
           splitter-host dump BUNDLE -o FILE           write the transformer's taps for `splitter verify-port`
    options: --compute-units ALL|CPU_ONLY|CPU_AND_GPU|CPU_AND_NE
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

    func number(_ option: String, default fallback: Double) throws(HostError) -> Double {
        guard let text = options[option] else { return fallback }
        guard let number = Double(text), number.isFinite else {
            throw .usage(invariant: "\(option) takes a number", received: text, fix: usage)
        }
        return number
    }

    func units() throws(HostError) -> ComputeUnits {
        guard let units = ComputeUnits(rawValue: options["--compute-units"] ?? "ALL") else {
            throw .usage(
                invariant: "--compute-units takes \(ComputeUnits.allCases.map(\.rawValue).joined(separator: ", "))",
                received: options["--compute-units"] ?? "", fix: usage)
        }
        return units
    }
}

private func run(_ command: String, _ given: [String]) async throws {
    switch command {
    case "verify":
        let arguments = try Arguments(given, options: ["--min-db", "--compute-units"])
        let bundle = try BundleReader(URL(fileURLWithPath: arguments.word(0, "a bundle")))
        let limit = try arguments.number("--min-db", default: 110)
        let results = try await verify(bundle, units: arguments.units())
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
    FileHandle.standardError.write(Data("splitter-host: \(error)\n".utf8))
    exit(1)
}
