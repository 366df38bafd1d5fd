import Foundation

/// One built model on disk: its manifest, and its files, each held against its hash before anything uses it.
public struct BundleReader: Sendable {
    public let home: URL
    public let manifest: Manifest
    /// Every boundary tensor by name.
    public let tensors: [String: TensorSpec]

    private static let buildAgain = "Build the bundle again."

    /// Open a bundle and check its manifest: format, digest, and that its parts fit each other.
    ///
    /// - Throws: `HostError.bundle`, naming the first rule that is broken.
    public init(_ home: URL) throws(HostError) {
        let raw = try Self.rawManifest(home)
        guard raw.format == Manifest.format else {
            throw .bundle(
                invariant: "\(home.lastPathComponent) must be of the format \(Manifest.format)", received: raw.format,
                fix: raw.format == BagManifest.format ? "Open it with `Bag`." : Self.buildAgain)
        }
        self.home = home
        manifest = try Self.decoded(Manifest.self, from: raw.file)
        tensors = Dictionary(manifest.tensors.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        try check()
    }

    /// Names of the tensors that the model is given.
    public var inputs: [String] { manifest.tensors.filter { $0.producer == "input" }.map(\.name) }

    /// Names of the tensors that the model gives.
    public var outputs: [String] { manifest.tensors.filter { $0.consumers.contains("output") }.map(\.name) }

    /// A file's bytes, after all of them were hashed.
    ///
    /// - Throws: `HostError.bundle` if the manifest does not list it, or it is not what was built.
    public func file(_ name: String) throws(HostError) -> MappedFile {
        guard let record = manifest.files[name] else {
            throw .bundle(
                invariant: "the manifest must list every file that it names", received: "no record of \(name)",
                fix: Self.buildAgain)
        }
        let file = try MappedFile(home.appendingPathComponent(name))
        guard file.bytes.count == record.bytes else {
            throw .bundle(
                invariant: "\(name) must hold \(record.bytes) bytes", received: "\(file.bytes.count)",
                fix: Self.buildAgain)
        }
        let digest = SHA256.hexadecimal(of: file.bytes)
        guard digest == record.sha256 else {
            throw .bundle(
                invariant: "\(name) must have the SHA-256 \(record.sha256)", received: digest, fix: Self.buildAgain)
        }
        return file
    }

    /// Path of a package, after every listed file of it was hashed and nothing else was found in it.
    ///
    /// - Throws: `HostError.bundle`.
    public func package(_ name: String) throws(HostError) -> URL {
        let listed = manifest.files.keys.filter { $0.hasPrefix(name + "/") }
        guard !listed.isEmpty else {
            throw .bundle(
                invariant: "the manifest must list the files of \(name)", received: "none", fix: Self.buildAgain)
        }
        for file in listed.sorted() {
            _ = try self.file(file)
        }
        let package = home.appendingPathComponent(name)
        let below = FileManager.default.enumerator(atPath: package.path)?.compactMap { $0 as? String } ?? []
        let stray = below.filter { path in
            !listed.contains("\(name)/\(path)") && !listed.contains { $0.hasPrefix("\(name)/\(path)/") }
                && !isEmptyDirectory(package.appendingPathComponent(path))
        }
        if let first = stray.sorted().first {
            throw .bundle(
                invariant: "\(name) must hold only files that the manifest lists", received: first,
                fix: "Remove it, or build the bundle again.")
        }
        return package
    }

    /// The recorded run of the untouched model, by tensor name.
    ///
    /// - Throws: `HostError.bundle`.
    public func goldens() throws(HostError) -> [String: Tensor] {
        let recorded = try Safetensors.read(file(manifest.golden.path), name: manifest.golden.path)
        for (name, spec) in tensors.sorted(by: { $0.key < $1.key }) where recorded[name]?.shape != spec.shape {
            throw .bundle(
                invariant: "the goldens must hold \(name) with the shape \(spec.shape)",
                received: recorded[name].map { "\($0.shape)" } ?? "nothing of that name", fix: Self.buildAgain)
        }
        return recorded
    }

    private func isEmptyDirectory(_ path: URL) -> Bool {  // Core ML Tools leaves some
        (try? FileManager.default.contentsOfDirectory(atPath: path.path).isEmpty) ?? false
    }

    private func check() throws(HostError) {
        func hold(_ isKept: Bool, _ invariant: String, _ received: String) throws(HostError) {
            guard isKept else { throw .bundle(invariant: invariant, received: received, fix: Self.buildAgain) }
        }
        try hold(tensors.count == manifest.tensors.count, "every tensor must have a name of its own", "one name twice")
        try hold(!manifest.segments.isEmpty, "a bundle must have a segment", "none")
        for spec in manifest.tensors {
            try hold(
                ["float32", "float16"].contains(spec.dtype),
                "\(spec.name) must be of float32 or float16, which this host computes with", spec.dtype)
            try hold(
                spec.shape.allSatisfy { $0 > 0 } && Self.elements(spec.shape) != nil,
                "\(spec.name) must have a shape that memory can hold", "\(spec.shape)")
            if let fold = spec.fold {
                try hold(
                    fold.length == spec.shape.last && fold.rows > 0 && fold.columns > 0
                        && Self.elements([fold.rows, fold.columns]).map { $0 >= fold.length } == true,
                    "the rows of \(spec.name) must hold its last axis",
                    "\(fold.rows) rows of \(fold.columns) for \(fold.length)")
            }
        }
        var known = Set(inputs)
        for segment in manifest.segments {
            for name in segment.inputs {
                try hold(
                    known.contains(name), "\(segment.name) must read what an earlier segment gives",
                    "\(name), given by none")
            }
            for name in segment.outputs {
                try hold(tensors[name] != nil, "\(segment.name) must give tensors that have a spec", name)
            }
            known.formUnion(segment.outputs)
        }
        for name in outputs {
            try hold(known.contains(name), "the output \(name) must be given by a segment", "none gives it")
        }
        for name in manifest.files.keys {
            try hold(isInside(name), "files must lie in the bundle", name)
        }
        if let audio = manifest.model.audio {
            try hold(
                !audio.stems.isEmpty && audio.samplerate > 0 && audio.channels > 0 && audio.samples > 0
                    && audio.stems.allSatisfy { isInside($0) && !$0.contains("/") },
                "a separator must have stems with possible names, a sample rate, channels and samples", "\(audio)")
            // The contract between the audio record and the tensors: (1, channels, samples) in, stems out.
            try hold(
                inputs.count == 1 && tensors[inputs[0]]?.shape == [1, audio.channels, audio.samples],
                "a separator must take 1 × \(audio.channels) × \(audio.samples)",
                inputs.map { "\(tensors[$0]?.shape ?? [])" }.joined(separator: ", "))
            try hold(  // a model of one stem may have no axis of stems
                outputs.count == 1
                    && [[audio.stems.count, audio.channels, audio.samples], [audio.channels, audio.samples]].contains(
                        Array(tensors[outputs[0]]?.shape.dropFirst() ?? []))
                    && tensors[outputs[0]]?.shape.reduce(1, *) == audio.stems.count * audio.channels * audio.samples,
                "a separator must give 1 × \(audio.stems.count) × \(audio.channels) × \(audio.samples)",
                outputs.map { "\(tensors[$0]?.shape ?? [])" }.joined(separator: ", "))
        }
    }

    /// Product of the extents; nil where it is beyond 2³¹ numbers.
    public static func elements(_ shape: [Int]) -> Int? {
        var product = 1
        for extent in shape {
            let (next, overflow) = product.multipliedReportingOverflow(by: extent)
            guard !overflow, next < 1 << 31 else { return nil }
            product = next
        }
        return product
    }

    /// The manifest of a bundle or a bag, with the format that it says it has, after its digest was checked.
    static func rawManifest(_ home: URL) throws(HostError) -> (format: String, file: MappedFile) {
        struct Formatted: Decodable { let format: String }
        let path = home.appendingPathComponent("manifest.json")
        guard FileManager.default.fileExists(atPath: path.path) else {
            throw .bundle(
                invariant: "a bundle must hold manifest.json", received: "\(home.path), which holds none",
                fix: "Build a bundle with `splitter build`.")
        }
        let file = try MappedFile(path)
        let format = try decoded(Formatted.self, from: file).format
        guard [Manifest.format, BagManifest.format].contains(format) else { return (format, file) }
        // The digest stands in the second line and is of all other bytes.
        let lines = file.bytes.split(separator: UInt8(ascii: "\n"), maxSplits: 2, omittingEmptySubsequences: false)
        let rest = lines.count == 3 ? Array(lines[0]) + [UInt8(ascii: "\n")] + Array(lines[2]) : []
        let line = " \"digest\": \"\(rest.withUnsafeBytes { SHA256.hexadecimal(of: $0) })\","
        guard lines.count == 3, lines[1].elementsEqual(line.utf8) else {
            throw .bundle(
                invariant: "manifest.json must be as it was built, with the line \(line.dropFirst())",
                received: lines.count > 1 ? String(decoding: lines[1].prefix(100), as: UTF8.self) : "a single line",
                fix: buildAgain)
        }
        return (format, file)
    }

    static func decoded<Content: Decodable>(_ type: Content.Type, from file: MappedFile) throws(HostError) -> Content {
        do {
            return try JSONDecoder().decode(type, from: Data(file.bytes))
        } catch {
            throw .bundle(
                invariant: "a bundle's JSON must fit its schema", received: explained(error), fix: buildAgain)
        }
    }

    /// What a decoder found, as one phrase.
    static func explained(_ error: any Error) -> String {
        let context: DecodingError.Context
        var missing = ""
        switch error as? DecodingError {
        case .keyNotFound(let key, let found): (missing, context) = ("no \(key.stringValue): ", found)
        case .typeMismatch(_, let found), .valueNotFound(_, let found), .dataCorrupted(let found): context = found
        default: return "\(error)"
        }
        return
            "\(missing)\(context.debugDescription) at /\(context.codingPath.map(\.stringValue).joined(separator: "/"))"
    }
}

/// A relative path that leads nowhere else.
func isInside(_ path: String) -> Bool {
    !path.isEmpty && !path.hasPrefix("/") && !path.contains("\0")
        && path.split(separator: "/", omittingEmptySubsequences: false).allSatisfy { !["", ".", ".."].contains($0) }
}

/// One bundle, or several whose stems are averaged.
public struct Bag: Sendable {
    public let name: String
    public let members: [BundleReader]
    /// `weights[member][stem]`, of the mean.
    public let weights: [[Float]]
    public let audio: AudioRecord

    /// Open a bundle or a bag of separators.
    ///
    /// - Throws: `HostError.bundle`; `HostError.usage` if it does not separate sound.
    public init(_ home: URL) throws(HostError) {
        let raw = try BundleReader.rawManifest(home)
        guard raw.format == BagManifest.format else {
            let bundle = try BundleReader(home)
            guard let audio = bundle.manifest.model.audio else {
                throw .usage(
                    invariant: "a separator must say what it separates",
                    received: "the model \(bundle.manifest.model.name) without an audio record",
                    fix: "Give the bundle of a separator.")
            }
            (name, members, self.audio) = (bundle.manifest.model.name, [bundle], audio)
            weights = [audio.stems.map { _ in 1 }]
            return
        }
        let manifest = try BundleReader.decoded(BagManifest.self, from: raw.file)
        func hold(_ isKept: Bool, _ invariant: String, _ received: String) throws(HostError) {
            guard isKept else { throw .bundle(invariant: invariant, received: received, fix: "Build the bag again.") }
        }
        var members: [BundleReader] = []
        for member in manifest.members {
            try hold(isInside(member) && !member.contains("/"), "members must lie in the bag", member)
            members.append(try BundleReader(home.appendingPathComponent(member)))
        }
        try hold(
            members.map(\.manifest.digest) == manifest.digests, "members must have the digests that the bag lists",
            "others")
        let records = members.compactMap(\.manifest.model.audio)
        guard records.count == members.count, let audio = records.first else {
            throw .bundle(
                invariant: "every member must be a separator", received: "\(records.count) of \(members.count)",
                fix: "Build the bag again.")
        }
        try hold(
            records.allSatisfy {
                ($0.stems, $0.samplerate, $0.channels) == (audio.stems, audio.samplerate, audio.channels)
            },
            "members must agree in stems, sample rate and channels", "others")
        try hold(
            manifest.weights.count == members.count
                && manifest.weights.allSatisfy { $0.count == audio.stems.count && $0.allSatisfy(\.isFinite) },
            "weights must be \(members.count) × \(audio.stems.count) finite numbers", "\(manifest.weights)")
        (name, self.members, weights, self.audio) = (manifest.name, members, manifest.weights, audio)
    }
}
