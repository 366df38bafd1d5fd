import Foundation
import StandinServer

/// `METAL_STANDIN_ORDER` chooses in which order threads run (forward, reverse, interleaved, shuffled, lockstep);
/// `METAL_STANDIN_CHECKED=1` holds every load and store against the memory model, as `splitter_kernels` does.
final class Device: MTLDevice {
    static let orders = ["forward", "reverse", "interleaved", "shuffled", "lockstep"]
    let order: UInt32
    let isChecked: Bool

    init() {
        let environment = ProcessInfo.processInfo.environment
        order = UInt32(Self.orders.firstIndex(of: environment["METAL_STANDIN_ORDER"] ?? "forward") ?? 0)
        isChecked = environment["METAL_STANDIN_CHECKED"] == "1"
    }

    let maxThreadgroupMemoryLength = 32_768  // what every Apple GPU offers

    func makeCommandQueue() -> (any MTLCommandQueue)? { Queue(self) }

    func makeBuffer(length: Int, options: MTLResourceOptions) -> (any MTLBuffer)? {
        length > 0 ? Buffer(length) : nil
    }

    func makeBuffer(bytes: UnsafeRawPointer, length: Int, options: MTLResourceOptions) -> (any MTLBuffer)? {
        guard length > 0 else { return nil }
        let buffer = Buffer(length)
        buffer.contents().copyMemory(from: bytes, byteCount: length)
        return buffer
    }

    func makeBuffer(
        bytesNoCopy pointer: UnsafeMutableRawPointer, length: Int, options: MTLResourceOptions,
        deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?
    ) -> (any MTLBuffer)? {
        let page = Int(getpagesize())  // Metal wants whole pages
        guard length > 0, length % page == 0, UInt(bitPattern: pointer) % UInt(page) == 0 else { return nil }
        return Buffer(pointer, length, deallocator)
    }

    func makeLibrary(source: String, options: MTLCompileOptions?) throws -> any MTLLibrary {
        try Library(source, options ?? MTLCompileOptions(), isChecked: isChecked)
    }

    func makeComputePipelineState(function: any MTLFunction) throws -> any MTLComputePipelineState {
        guard let function = function as? Function else { throw failure("a function of another device") }
        return Pipeline(function)
    }
}

func failure(_ reason: String) -> NSError {
    NSError(domain: "MTLStandin", code: 0, userInfo: [NSLocalizedDescriptionKey: reason])
}

final class Buffer: MTLBuffer {
    let length: Int
    private let memory: UnsafeMutableRawPointer
    private let deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?

    init(_ length: Int) {
        self.length = length
        memory = .allocate(byteCount: length, alignment: 256)
        memory.initializeMemory(as: UInt8.self, repeating: 0xff, count: length)  // NaN: what nobody writes is seen
        deallocator = { memory, _ in memory.deallocate() }
    }

    init(_ memory: UnsafeMutableRawPointer, _ length: Int, _ deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?) {
        (self.memory, self.length, self.deallocator) = (memory, length, deallocator)
    }

    deinit { deallocator?(memory, length) }

    func contents() -> UnsafeMutableRawPointer { memory }
}

/// What the harness says a kernel is bound to.
struct Kernel: Decodable {
    struct Argument: Decodable { let name, role, type: String, index: Int }
    let name: String
    let arguments: [Argument]
}

final class Library: MTLLibrary {
    private let kernels: [String: Kernel]
    private let handle: UnsafeMutableRawPointer
    private struct Answer: Decodable { let library: String, kernels: [Kernel] }

    init(_ source: String, _ options: MTLCompileOptions, isChecked: Bool) throws {
        let storage = (options.preprocessorMacros?["STORAGE"] as? NSString).map { String(describing: $0) } ?? "float"
        let request: [String: any Sendable] = [
            "do": "compile", "text": source, "storage": storage == "half" ? "float16" : "float32",
            "maths": options.mathMode == .safe ? "safe" : "relaxed", "checked": isChecked,
        ]
        let answer = try JSONDecoder().decode(Answer.self, from: Server.shared.ask(request).answer)
        guard let handle = dlopen(answer.library, RTLD_NOW | RTLD_LOCAL) else {
            throw failure(String(cString: dlerror()))
        }
        self.handle = handle
        kernels = Dictionary(uniqueKeysWithValues: answer.kernels.map { ($0.name, $0) })
    }

    var functionNames: [String] { kernels.keys.sorted() }

    func makeFunction(name: String) -> (any MTLFunction)? {
        guard let kernel = kernels[name], let address = dlsym(handle, "launch_\(name)") else { return nil }
        return Function(self, kernel, unsafeBitCast(address, to: Function.Launcher.self))
    }
}

final class Function: MTLFunction {
    typealias Launcher = @convention(c) (UnsafeMutableRawPointer) -> Void
    let kernel: Kernel
    let launcher: Launcher
    private let library: Library  // stays loaded

    init(_ library: Library, _ kernel: Kernel, _ launcher: @escaping Launcher) {
        (self.library, self.kernel, self.launcher) = (library, kernel, launcher)
    }

    var name: String { kernel.name }
}

final class Pipeline: MTLComputePipelineState {
    let function: Function
    let maxTotalThreadsPerThreadgroup = 1024

    init(_ function: Function) { self.function = function }
}
