import Foundation

/// Values of one array on its way to or from the server, in row-major order.
public struct WireArray: Sendable {
    public let name: String
    public let shape: [Int]
    /// `float32` or `float16`.
    public let dtype: String
    public let bytes: Data

    public init(name: String, shape: [Int], dtype: String, bytes: Data) {
        (self.name, self.shape, self.dtype, self.bytes) = (name, shape, dtype, bytes)
    }
}

/// What the server, or the pipe to it, says in place of an answer.
public struct ServerError: Error, CustomStringConvertible, Sendable {
    public let description: String
}

/// The Python process behind the stand-ins, one for this process, which serves one request at a time.
///
/// `SPLITTER_STANDIN_SERVER` is the command that starts it, words apart by spaces; `make swift-test` sets it.
public final class Server: @unchecked Sendable {  // everything happens under the lock
    public static let shared = Server()

    private let lock = NSLock()
    private var pipes: (input: FileHandle, output: FileHandle)?
    private var process: Process?

    /// Ask for something.
    ///
    /// - Parameters:
    ///   - request: What, as JSON values.
    ///   - arrays: Sent behind it.
    /// - Returns: The answer as JSON, and the arrays behind it.
    public func ask(_ request: [String: any Sendable], _ arrays: [WireArray] = []) throws -> (
        answer: Data, arrays: [WireArray]
    ) {
        try lock.withLock {
            let (input, output) = try started()
            var message = request
            if !arrays.isEmpty {
                message["arrays"] = arrays.map {
                    ["name": $0.name, "shape": $0.shape, "dtype": $0.dtype] as [String: any Sendable]
                }
            }
            try input.write(contentsOf: JSONSerialization.data(withJSONObject: message) + Data("\n".utf8))
            for array in arrays {
                try input.write(contentsOf: array.bytes)
            }
            let line = try readLine(output)
            let answer = try JSONDecoder().decode(Answer.self, from: line)
            if let error = answer.error { throw ServerError(description: error) }
            let received = try answer.arrays.map { array in
                let size = array.shape.reduce(array.dtype == "float16" ? 2 : 4, *)
                return WireArray(
                    name: array.name, shape: array.shape, dtype: array.dtype, bytes: try read(output, size))
            }
            return (line, received)
        }
    }

    private struct Answer: Decodable {
        struct Array: Decodable { let name: String, shape: [Int], dtype: String }
        let error: String?
        let arrays: [Array]
    }

    private func started() throws -> (FileHandle, FileHandle) {
        if let pipes { return pipes }
        let words = (ProcessInfo.processInfo.environment["SPLITTER_STANDIN_SERVER"] ?? "").split(separator: " ").map(
            String.init)
        guard let command = words.first else {
            throw ServerError(description: "SPLITTER_STANDIN_SERVER is not set; run this by `make swift-test`")
        }
        let (input, output, process) = (Pipe(), Pipe(), Process())
        process.executableURL = URL(fileURLWithPath: command)
        process.arguments = Array(words.dropFirst())
        process.standardInput = input
        process.standardOutput = output
        signal(SIGPIPE, SIG_IGN)  // a server that is gone is an error of this request
        try process.run()
        self.process = process
        let pipes = (input.fileHandleForWriting, output.fileHandleForReading)
        self.pipes = pipes
        return pipes
    }

    private func readLine(_ output: FileHandle) throws -> Data {
        var line = Data()
        while let byte = try output.read(upToCount: 1), byte[byte.startIndex] != UInt8(ascii: "\n") {
            line.append(byte)
        }
        guard !line.isEmpty else { throw ServerError(description: "the stand-ins' server has ended") }
        return line
    }

    private func read(_ output: FileHandle, _ count: Int) throws -> Data {
        var content = Data(capacity: count)
        while content.count < count {
            guard let part = try output.read(upToCount: count - content.count), !part.isEmpty else {
                throw ServerError(description: "the stand-ins' server has ended")
            }
            content.append(part)
        }
        return content
    }
}
