// Stands in for Apple's Core ML on Linux: the API that the host uses, no more, predicted by `splitter.mil`. It does not
// show placement, speed, or the last bits of Apple's results.
import Foundation

public enum MLMultiArrayDataType: Int, Sendable {
    case double = 65600
    case float32 = 65568
    case float16 = 65552
    case int32 = 131104
}

/// An array whose rows may lie further apart than they are long.
public final class MLMultiArray: @unchecked Sendable {
    public let shape: [NSNumber]
    public let strides: [NSNumber]
    public let dataType: MLMultiArrayDataType
    private let memory: UnsafeMutableRawBufferPointer

    /// Dense, as Apple's.
    public convenience init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        try self.init(shape: shape.map(\.intValue), dataType: dataType, rowsOf: 1)
    }

    /// What predictions give: rows begin at multiples of `rowsOf` elements, as those of Apple's engine may.
    init(shape: [Int], dataType: MLMultiArrayDataType, rowsOf multiple: Int) throws {
        guard dataType == .float32 || dataType == .float16, shape.allSatisfy({ $0 > 0 }) else {
            throw NSError(domain: "com.apple.CoreML", code: 0)
        }
        var strides = [Int](repeating: 1, count: shape.count)
        for axis in shape.indices.dropLast().reversed() {
            let extent =
                axis == shape.count - 2 ? (shape[axis + 1] + multiple - 1) / multiple * multiple : shape[axis + 1]
            strides[axis] = strides[axis + 1] * extent
        }
        self.shape = shape.map { NSNumber(value: $0) }
        self.strides = strides.map { NSNumber(value: $0) }
        self.dataType = dataType
        let count = shape.isEmpty ? 1 : shape[0] * strides[0]
        memory = .allocate(byteCount: count * (dataType == .float16 ? 2 : 4), alignment: 64)
        memory.initializeMemory(as: UInt8.self, repeating: 0xff)  // NaN: a reader that ignores strides is seen
    }

    deinit {
        memory.deallocate()
    }

    public func withUnsafeBytes<Result>(_ body: (UnsafeRawBufferPointer) throws -> Result) rethrows -> Result {
        try body(UnsafeRawBufferPointer(memory))
    }

    public func withUnsafeMutableBytes<Result>(
        _ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> Result
    ) rethrows -> Result {
        try body(memory, strides.map(\.intValue))
    }
}
