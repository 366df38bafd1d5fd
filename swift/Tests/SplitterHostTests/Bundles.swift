import Foundation
import XCTest

@testable import SplitterBundle

/// The demo bundle, which `make swift-test` builds.
func demoBundle() throws -> URL { try built("demo.bundle") }

/// A bundle of six stems at 8 kHz, small, in runs of a second, which it builds too.
func sixStemBundle() throws -> URL { try built("six.bundle") }

private func built(_ name: String) throws -> URL {
    let path = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().appendingPathComponent("../../.build/\(name)").standardized
    guard FileManager.default.fileExists(atPath: path.path) else {
        throw HostError.usage(invariant: "\(name) must be there", received: "none", fix: "Run `make swift-test`.")
    }
    return path
}

/// An empty folder that the test case removes.
func scratch(_ test: XCTestCase) throws -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    test.addTeardownBlock { try FileManager.default.removeItem(at: folder) }
    return folder
}

/// A copy of the demo bundle in a folder that the test case removes.
func copiedBundle(_ test: XCTestCase) throws -> URL {
    let copy = try scratch(test).appendingPathComponent("demo.bundle")
    try FileManager.default.copyItem(at: demoBundle(), to: copy)
    return copy
}

/// Change a manifest, or the files beside it, and make its hashes fit again, as somebody with bad intentions would.
func edit(_ bundle: URL, relisting files: [String] = [], _ change: (inout [String: Any]) throws -> Void) throws {
    let path = bundle.appendingPathComponent("manifest.json")
    var content = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(contentsOf: path)) as? [String: Any])
    var records = try XCTUnwrap(content["files"] as? [String: Any])
    for file in files {
        let bytes = try Data(contentsOf: bundle.appendingPathComponent(file))
        records[file] = ["bytes": bytes.count, "sha256": bytes.withUnsafeBytes { SHA256.hexadecimal(of: $0) }]
    }
    content["files"] = records
    try change(&content)
    content["digest"] = nil
    let rest = try JSONSerialization.data(withJSONObject: content)
    try sealed(rest).write(to: path)
}

/// A manifest with its digest in the second line.
func sealed(_ json: Data) -> Data {
    let rest = Data("{\n".utf8) + json.dropFirst()
    let digest = rest.withUnsafeBytes { SHA256.hexadecimal(of: $0) }
    return Data("{\n \"digest\": \"\(digest)\",\n".utf8) + json.dropFirst()
}
