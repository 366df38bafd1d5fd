/// Moves of a tensor's elements, as `splitter/runtime/host.py` means them. Arguments are the caller's to check.
extension Tensor {
    /// Axis i of the result is axis axes[i].
    public func transposed(_ axes: [Int]) -> Tensor {
        let strides = rowMajorStrides(shape)
        return gathered(shape: axes.map { shape[$0] }, strides: axes.map { strides[$0] })
    }

    /// Elements of a range along one axis.
    public func sliced(axis: Int, _ range: Range<Int>) -> Tensor {
        var extents = shape
        extents[axis] = range.count
        let strides = rowMajorStrides(shape)
        return gathered(shape: extents, strides: strides, first: range.lowerBound * strides[axis])
    }

    /// Zeros, or the mirror image without the edge itself, before and after.
    public func padded(before: [Int], after: [Int], reflected: Bool) -> Tensor {
        var padded = self
        for axis in shape.indices where before[axis] + after[axis] > 0 {
            padded = padded.padded(axis: axis, before[axis], after[axis], reflected: reflected)
        }
        return padded
    }

    /// The same values at every place of the axes of extent 1, and of axes before the first one.
    public func repeated(to shape: [Int]) -> Tensor {
        let missing = shape.count - self.shape.count
        let strides = rowMajorStrides(self.shape)
        let steps = shape.indices.map { axis in
            axis < missing || self.shape[axis - missing] == 1 ? 0 : strides[axis - missing]
        }
        return gathered(shape: shape, strides: steps)
    }

    /// The same for arithmetic: a single value stays one, to be read with a step of 0.
    public func expanded(to shape: [Int]) -> (values: [Float], step: Int) {
        count == 1 ? (values, 0) : (self.shape == shape ? values : repeated(to: shape).values, 1)
    }

    /// One after the other along an axis.
    public static func concatenated(_ tensors: [Tensor], axis: Int) -> Tensor {
        var shape = tensors[0].shape
        shape[axis] = tensors.reduce(0) { $0 + $1.shape[axis] }
        let outer = shape[..<axis].reduce(1, *)
        var values: [Float] = []
        values.reserveCapacity(shape.reduce(1, *))
        for row in 0..<outer {
            for tensor in tensors {
                let size = tensor.count / outer
                values += tensor.values[row * size..<(row + 1) * size]
            }
        }
        return Tensor(shape: shape, values: values)
    }

    /// Elements of the first axis at some places, in their order.
    public func taken(_ indices: [Int]) -> Tensor {
        let size = count / shape[0]
        var values: [Float] = []
        values.reserveCapacity(indices.count * size)
        for index in indices {
            values += self.values[index * size..<(index + 1) * size]
        }
        return Tensor(shape: [indices.count] + shape.dropFirst(), values: values)
    }

    /// What `change` makes of each part along an axis: part k of `others` and part `indices[k]` of this, in the order
    /// of k.
    public func changed(
        axis: Int, at indices: [Int], by others: Tensor, _ change: (inout Float, Float) -> Void
    ) -> Tensor {
        var result = values
        let inner = shape[(axis + 1)...].reduce(1, *)
        for outer in 0..<shape[..<axis].reduce(1, *) {
            for (k, index) in indices.enumerated() {
                let (to, from) = ((outer * shape[axis] + index) * inner, (outer * indices.count + k) * inner)
                for i in 0..<inner {
                    change(&result[to + i], others.values[from + i])
                }
            }
        }
        return Tensor(shape: shape, values: result)
    }

    private func padded(axis: Int, _ before: Int, _ after: Int, reflected: Bool) -> Tensor {
        let (extent, inner) = (shape[axis], shape[(axis + 1)...].reduce(1, *))
        let total = before + extent + after
        var extents = shape
        extents[axis] = total
        var result = [Float](repeating: 0, count: extents.reduce(1, *))
        for outer in 0..<(shape[..<axis].reduce(1, *)) {
            for place in 0..<total {
                var source = place - before
                if reflected {
                    source = source < 0 ? -source : source >= extent ? 2 * (extent - 1) - source : source
                }
                guard (0..<extent).contains(source) else { continue }
                let (from, to) = ((outer * extent + source) * inner, (outer * total + place) * inner)
                for i in 0..<inner {
                    result[to + i] = values[from + i]
                }
            }
        }
        return Tensor(shape: extents, values: result)
    }

    /// The element at index i of the result is that at `first` + i · strides.
    private func gathered(shape: [Int], strides: [Int], first: Int = 0) -> Tensor {
        let count = shape.reduce(1, *)
        let result = [Float](unsafeUninitializedCapacity: count) { result, initialized in
            values.withUnsafeBufferPointer { values in
                guard let (inner, step) = zip(shape, strides).map({ ($0, $1) }).last else {
                    result[0] = values[first]
                    return
                }
                var index = [Int](repeating: 0, count: shape.count)
                var source = first
                var target = 0
                while target < count {
                    for i in 0..<inner {
                        result[target + i] = values[source + i * step]
                    }
                    target += inner
                    for axis in shape.indices.dropLast().reversed() {
                        index[axis] += 1
                        source += strides[axis]
                        if index[axis] < shape[axis] { break }
                        source -= shape[axis] * strides[axis]
                        index[axis] = 0
                    }
                }
            }
            initialized = count
        }
        return Tensor(shape: shape, values: result)
    }
}

/// The shape of two broadcast shapes; nil where they do not fit.
public func broadcast(_ x: [Int], _ y: [Int]) -> [Int]? {
    let rank = max(x.count, y.count)
    let (left, right) = (
        Array(repeating: 1, count: rank - x.count) + x, Array(repeating: 1, count: rank - y.count) + y
    )
    guard zip(left, right).allSatisfy({ $0 == $1 || $0 == 1 || $1 == 1 }) else { return nil }
    return zip(left, right).map(max)
}
