import XCTest

@testable import SplitterBundle
@testable import SplitterHost

/// Bundles that are damaged, or made by somebody with bad intentions, who makes the hashes fit: each is refused with a
/// named error, and none ends the process.
final class DamagedBundleTests: XCTestCase {
    /// Open, load and run as far as it takes to find the damage.
    private func use(_ home: URL) async throws {
        let bundle = try BundleReader(home)
        for segment in bundle.manifest.segments where segment.artifact.target == "kernels" {
            _ = try MetalTransformer(bundle, segment)
        }
        let mix = Tensor(shape: [1, 2, 66_150], values: (0..<132_300).map { Float(sin(Double($0))) })
        for segment in bundle.manifest.segments where segment.name == "analysis" {
            _ = try HostTransform(bundle, segment).run(["mix": mix])
        }
        _ = try bundle.goldens()
        _ = try await Orchestrator(bundle)
    }

    func testTheBundleItselfIsTaken() async throws {
        let copy = try copiedBundle(self)
        try edit(copy, relisting: ["analysis.json"]) { _ in }
        try await use(copy)
    }

    func testFilesThatAreNotWhatWasBuilt() async throws {
        let damages: [(String, (URL) throws -> Void)] = [
            (
                "must hold manifest.json",
                { try FileManager.default.removeItem(at: $0.appendingPathComponent("manifest.json")) }
            ),
            ("JSON must fit", { try Data().write(to: $0.appendingPathComponent("manifest.json")) }),
            ("JSON must fit", { try Data("{".utf8).write(to: $0.appendingPathComponent("manifest.json")) }),
            ("JSON must fit", { try Data("[1]".utf8).write(to: $0.appendingPathComponent("manifest.json")) }),
            (
                "JSON must fit",
                {
                    try Data(String(repeating: "[", count: 100_000).utf8).write(
                        to: $0.appendingPathComponent("manifest.json"))
                }
            ),
            (
                "manifest.json must be as it was built",
                { try self.replace("\"demo\"", "\"dome\"", in: "manifest.json", of: $0) }
            ),
            (
                "must be a readable file",
                { try FileManager.default.removeItem(at: $0.appendingPathComponent("analysis.json")) }
            ),
            ("analysis.json must have the SHA-256", { try self.replace("stft", "stfx", in: "analysis.json", of: $0) }),
            ("analysis.json must hold", { try self.replace("stft", "stf", in: "analysis.json", of: $0) }),
            (
                "must be a readable file",
                {
                    let path = $0.appendingPathComponent("analysis.json")
                    try FileManager.default.removeItem(at: path)
                    try FileManager.default.createSymbolicLink(
                        at: path, withDestinationURL: demoBundle().appendingPathComponent("analysis.json"))
                }
            ),
            (
                "must be a readable file",
                {
                    let path = $0.appendingPathComponent("transformer.safetensors")
                    try FileManager.default.removeItem(at: path)
                    try FileManager.default.createDirectory(at: path, withIntermediateDirectories: false)
                }
            ),
            (
                "must hold only files that the manifest lists",
                { try Data("x".utf8).write(to: $0.appendingPathComponent("encoder.mlpackage/Data/more")) }
            ),
        ]
        for (words, damage) in damages {
            let copy = try copiedBundle(self)
            try damage(copy)
            await assertThrows(.bundle, words) { try await use(copy) }
        }
    }

    func testManifestsWhosePartsDoNotFit() async throws {
        typealias Record = [String: Any]
        func tensor(_ key: String, _ value: Any) -> (inout Record) throws -> Void {
            { content in
                var tensors = try XCTUnwrap(content["tensors"] as? [Record])
                tensors[4][key] = value
                content["tensors"] = tensors
            }
        }
        func segment(_ index: Int, _ key: String, _ value: Any) -> (inout Record) throws -> Void {
            { content in
                var segments = try XCTUnwrap(content["segments"] as? [Record])
                segments[index][key] = value
                content["segments"] = segments
            }
        }
        func audio(_ key: String, _ value: Any) -> (inout Record) throws -> Void {
            { content in
                var model = try XCTUnwrap(content["model"] as? Record)
                var audio = try XCTUnwrap(model["audio"] as? Record)
                audio[key] = value
                model["audio"] = audio
                content["model"] = model
            }
        }
        func config(_ key: String, _ value: Any) -> (inout Record) throws -> Void {
            { content in
                try self.changeTransformer(&content) { details in
                    var config = try XCTUnwrap(details["config"] as? Record)
                    config[key] = value
                    details["config"] = config
                }
            }
        }
        func weight(_ key: String, _ value: Any?) -> (inout Record) throws -> Void {
            { content in
                try self.changeTransformer(&content) { details in
                    var tensors = try XCTUnwrap(details["tensors"] as? Record)
                    let name = "layers.0.linear1.weight"
                    var tensor = try XCTUnwrap(tensors[name] as? Record)
                    tensor[key] = value
                    tensors[name] = key.isEmpty ? nil : tensor
                    details["tensors"] = tensors
                }
            }
        }
        let damages: [(String, (inout Record) throws -> Void)] = [
            ("must be of the format splitter.bundle/2", { $0["format"] = "splitter.bundle/1" }),
            ("no segments", { $0["segments"] = nil }),
            ("must have a segment", { $0["segments"] = [Record]() }),
            ("must be of float32 or float16", tensor("dtype", "int64")),
            ("shape that memory can hold", tensor("shape", [1, -1])),
            ("shape that memory can hold", tensor("shape", [1 << 40, 1 << 40])),
            ("must have a name of its own", tensor("name", "mix")),
            ("the rows of waveform_mean must hold", tensor("fold", ["length": 1, "rows": 0, "columns": 5])),
            ("must read what an earlier segment gives", segment(1, "inputs", ["stems"])),
            ("must give tensors that have a spec", segment(1, "outputs", ["nothing"])),
            (
                "must be for host, coreml or kernels",
                segment(0, "artifact", ["target": "toaster", "path": "analysis.json", "details": Record()])
            ),
            (
                "must list every file",
                segment(0, "artifact", ["target": "host", "path": "x.json", "details": Record()])
            ),
            ("must lie in the bundle", { $0["files"] = ["../manifest.json": ["bytes": 1, "sha256": ""]] }),
            ("must have stems with possible names", audio("stems", ["../a", "b", "c", "d"])),
            ("a separator must take", audio("samples", 5)),
            ("configuration must be possible", config("heads", 0)),
            ("configuration must be possible", config("heads", 7)),
            ("configuration must be possible", config("layers", 1 << 40)),
            ("must hold 520 tokens of 160 channels", config("width", 160)),
            ("must lie in the transformer's file", weight("offset", 1 << 40)),
            ("must lie in the transformer's file", weight("offset", Int.max - 63)),
            ("must lie in the transformer's file", weight("shape", [1 << 33, 1 << 33])),
            ("the transformer must have layers.0.linear1.weight", weight("parameter_shape", [80, 160])),
            ("the transformer must have layers.0.linear1.weight", weight("", nil)),
        ]
        for (words, damage) in damages {
            let copy = try copiedBundle(self)
            try edit(copy, damage)
            await assertThrows(.bundle, words) { try await use(copy) }
        }
    }

    func testContentsThatCannotBeExecuted() async throws {
        let damages: [(Kind, String, file: String, String, String)] = [
            (
                .specification, "must be an operation that this host knows", "analysis.json",
                "\"stft\",\n   \"arguments\"", "\"stfx\",\n   \"arguments\""
            ),
            (.specification, "must be a host specification", "analysis.json", "\"steps\"", "\"step\""),
            (.specification, "must be of the format", "analysis.json", "splitter.host/1", "splitter.host/9"),
            (
                .specification, "must read what an earlier step gives", "analysis.json", "\"hann_window\"\n",
                "\"_unsafe_view\"\n"
            ),
            (
                .specification, "a transform's length must be a power of two", "analysis.json", "\"fft_length\": 2048",
                "\"fft_length\": 2047"
            ),
            (.specification, "must have a possible length", "analysis.json", "\"length\": 2048", "\"length\": -1"),
            (.specification, "must stay inside axis", "analysis.json", "\"stop\": 132", "\"stop\": 9000"),
            (.specification, "must pad", "analysis.json", "     768", "     9223372036854775"),
            (.specification, "must give [1, 2, 68096]", "analysis.json", "     1178", "     1170"),
            (.segment, "Core ML must load", "encoder.mlpackage/Data/com.apple.CoreML/model.mlmodel", "conv", "vnoc"),
            (.bundle, "the header must", "goldens.safetensors", "\"mix\":{", "\"mix\":["),
            (.bundle, "the goldens must hold mix", "goldens.safetensors", "\"mix\":{", "\"mxi\":{"),
        ]
        for (kind, words, file, old, new) in damages {
            let copy = try copiedBundle(self)
            try replace(old, new, in: file, of: copy)
            try edit(copy, relisting: [file]) { _ in }
            await assertThrows(kind, words) { try await use(copy) }
        }
    }

    private func changeTransformer(_ content: inout [String: Any], _ change: (inout [String: Any]) throws -> Void)
        throws
    {
        var segments = try XCTUnwrap(content["segments"] as? [[String: Any]])
        var artifact = try XCTUnwrap(segments[2]["artifact"] as? [String: Any])
        var details = try XCTUnwrap(artifact["details"] as? [String: Any])
        try change(&details)
        artifact["details"] = details
        segments[2]["artifact"] = artifact
        content["segments"] = segments
    }

    /// Replace every place of some text.
    private func replace(_ old: String, _ new: String, in file: String, of bundle: URL) throws {
        let path = bundle.appendingPathComponent(file)
        var content = try Data(contentsOf: path)
        var places = 0
        while let range = content.range(of: Data(old.utf8), in: content.startIndex..<content.endIndex), places < 1000 {
            content.replaceSubrange(range, with: Data(new.utf8))
            places += 1
        }
        XCTAssertGreaterThan(places, 0, "\(file) holds no \(old)")
        try content.write(to: path)
    }
}
