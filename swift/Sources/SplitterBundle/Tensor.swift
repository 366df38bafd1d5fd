/// Numbers in row-major order, the last axis densest.
public struct Tensor: Sendable, Equatable {
    public let shape: [Int]
    public let values: [Float]

    /// - Precondition: `values` has as many elements as the shape says.
    public init(shape: [Int], values: [Float]) {
        precondition(shape.reduce(1, *) == values.count, "\(values.count) values do not fill \(shape)")
        self.shape = shape
        self.values = values
    }

    public var count: Int { values.count }

    /// The same elements with other extents.
    public func reshaped(_ shape: [Int]) -> Tensor { Tensor(shape: shape, values: values) }

    /// As many zeros.
    public var zeros: Tensor { Tensor(shape: shape, values: [Float](repeating: 0, count: count)) }

    /// Every value rounded to half precision, ties to even.
    public func roundedToHalf() -> Tensor {
        Tensor(shape: shape, values: values.map { Float(Float16($0)) })
    }

    /// Index of the first value that is NaN or infinite.
    public var firstNotFinite: Int? { values.firstIndex { !$0.isFinite } }
}

/// Elements from one to the next of each axis, in row-major order.
public func rowMajorStrides(_ shape: [Int]) -> [Int] {
    var strides = [Int](repeating: 1, count: shape.count)
    for axis in shape.indices.dropLast().reversed() {
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    }
    return strides
}
