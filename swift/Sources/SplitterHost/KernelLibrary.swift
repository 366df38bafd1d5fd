import Foundation
import Metal
import SplitterBundle

/// In which type activations and matrices lie on the GPU; everything between is computed in float.
public enum KernelStorage: String, Sendable, CaseIterable {
    case float, half

    /// Bytes of an element.
    var width: Int { self == .half ? 2 : 4 }
}

/// The kernels of `kernels/splitter_kernels/metal`, compiled from the text that the package carries.
struct KernelLibrary {
    /// By kernel.
    let pipelines: [String: any MTLComputePipelineState]
    /// The integer constants of each file, e.g. `constants["linear"]["ROWS"]`.
    let constants: [String: [String: Int]]

    private static let headers = [
        "elementary.h": PackageResources.elementary_h, "reduction.h": PackageResources.reduction_h,
        "storage.h": PackageResources.storage_h,
    ]
    private static let files = [
        "attention": PackageResources.attention_metal, "group_norm": PackageResources.group_norm_metal,
        "layer_norm": PackageResources.layer_norm_metal, "linear": PackageResources.linear_metal,
        "residual": PackageResources.residual_metal, "tokens": PackageResources.tokens_metal,
    ]

    /// Compile every kernel, with maths that keeps to IEEE rules.
    ///
    /// - Throws: `HostError.segment` with what the compiler says.
    init(_ device: any MTLDevice, _ storage: KernelStorage) throws(HostError) {
        let options = MTLCompileOptions()
        options.preprocessorMacros = ["STORAGE": storage.rawValue as NSString]
        if #available(macOS 15, iOS 18, *) {
            options.mathMode = .safe
        } else {
            options.fastMathEnabled = false
        }
        var pipelines: [String: any MTLComputePipelineState] = [:]
        var constants: [String: [String: Int]] = [:]
        for (name, content) in Self.files {
            let text = String(decoding: content, as: UTF8.self)
            constants[name] = Self.constants(of: text)
            do {
                let library = try device.makeLibrary(source: Self.inlined(text), options: options)
                for kernel in library.functionNames {
                    guard let function = library.makeFunction(name: kernel) else { continue }
                    pipelines[kernel] = try device.makeComputePipelineState(function: function)
                }
            } catch {
                throw .segment(
                    invariant: "Metal must compile \(name).metal", received: "\(error)",
                    fix: "Update the system, or report this with the name of the device.")
            }
        }
        (self.pipelines, self.constants) = (pipelines, constants)
    }

    /// The text with its headers in it, each once: a library that is compiled from text has no folder of headers.
    private static func inlined(_ text: String) -> String {
        var seen: Set<String> = []
        func lines(_ text: String) -> [Substring] {
            text.split(separator: "\n", omittingEmptySubsequences: false).flatMap { line -> [Substring] in
                let parts = line.split(separator: "\"")
                guard line.hasPrefix("#include \""), parts.count == 2, let header = headers[String(parts[1])] else {
                    return line.hasPrefix("#pragma once") ? [] : [line]
                }
                return seen.insert(String(parts[1])).inserted ? lines(String(decoding: header, as: UTF8.self)) : []
            }
        }
        return lines(text).joined(separator: "\n")
    }

    /// `constant constexpr uint NAME = …;` with integers, and products of integers and earlier names.
    private static func constants(of text: String) -> [String: Int] {
        var found: [String: Int] = [:]
        for match in text.matches(of: /constant constexpr uint (\w+) = ([\w *]+);/) {
            let factors = match.2.split(separator: "*").map { $0.trimmingCharacters(in: .whitespaces) }
            found[String(match.1)] = factors.map { found[$0] ?? Int($0) ?? 0 }.reduce(1, *)
        }
        return found
    }
}
