import SplitterBundle

/// Operations of a host specification that make values from none, or move elements without computing with them.
extension HostTransform {
    /// What a step gives; nil for an operation that computes.
    func moved(_ step: Specification.Step, _ arguments: [Value]) throws(HostError) -> Value? {
        let parameters = step.parameters
        switch (step.op, arguments.count) {
        case ("constant", 0):
            let (values, shape) = (try parameter(parameters.values, step), try shape(step))
            guard shape.reduce(1, *) == values.count, parameters.dtype == "float32" else {
                throw fault(step, "must hold float32 that fill \(shape)", "\(values.count) \(parameters.dtype ?? "")")
            }
            return .real(Tensor(shape: shape, values: values))
        case ("fill", 0):
            let (value, shape) = (try parameter(parameters.value, step), try shape(step))
            let filled = Tensor(shape: [], values: [value]).repeated(to: shape)
            switch parameters.dtype {
            case "float32": return .real(filled)
            case "complex64": return .complex(filled, filled.zeros)
            default: throw fault(step, "must hold float32 or complex64", parameters.dtype ?? "nothing")
            }
        case ("reshape", 1):
            let shape = try shape(step)
            guard shape.reduce(1, *) == arguments[0].shape.reduce(1, *) else {
                throw fault(step, "must keep the number of elements", "\(arguments[0].shape) as \(shape)")
            }
            return arguments[0].map { $0.reshaped(shape) }
        case ("expand", 1):
            let shape = try shape(step)
            guard broadcast(arguments[0].shape, shape) == shape else {
                throw fault(step, "must take a shape that fits \(shape)", "\(arguments[0].shape)")
            }
            return arguments[0].map { $0.repeated(to: shape) }
        case ("transpose", 1):
            let axes = try axes(step)
            guard axes.sorted() == Array(arguments[0].shape.indices) else {
                throw fault(step, "must name every axis once", "\(axes)")
            }
            return arguments[0].map { $0.transposed(axes) }
        case ("slice", 1):
            let (start, stop) = (try parameter(parameters.start, step), try parameter(parameters.stop, step))
            return try slice(step, arguments[0], start, stop)
        case ("select", 1):
            let (axis, index) = (try parameter(parameters.axis, step), try parameter(parameters.index, step))
            let part = try slice(step, arguments[0], index, index < .max ? index + 1 : index)
            var shape = part.shape
            shape.remove(at: axis)
            return part.map { $0.reshaped(shape) }
        case ("concatenate", 1...), ("stack", 1...): return try joined(step, arguments)
        case ("put", 2):
            let index = try parameter(parameters.index, step)
            return try changed(step, arguments[0], at: [index], by: arguments[1]) { $0 = $1 }
        case ("add_at", 2):
            let indices = try parameter(parameters.indices, step)
            return try changed(step, arguments[0], at: indices, by: arguments[1]) { $0 += $1 }
        case ("take", 1): return try taken(step, arguments[0])
        case ("pad_zero", 1), ("pad_reflect", 1): return try padded(step, arguments[0])
        case ("split_complex", 1):
            guard case .complex(let re, let im) = arguments[0] else {
                throw fault(step, "must take complex numbers", "real ones")
            }
            var values = [Float](repeating: 0, count: 2 * re.count)
            for i in 0..<re.count {
                values[2 * i] = re.values[i]
                values[2 * i + 1] = im.values[i]
            }
            return .real(Tensor(shape: re.shape + [2], values: values))
        case ("join_complex", 1):
            let pairs = try arguments[0].real(step, self)
            guard pairs.shape.last == 2 else { throw fault(step, "must take pairs", "\(pairs.shape)") }
            let shape = Array(pairs.shape.dropLast())
            let parts = (0..<2).map { part in
                Tensor(shape: shape, values: stride(from: part, to: pairs.count, by: 2).map { pairs.values[$0] })
            }
            return .complex(parts[0], parts[1])
        default: return nil
        }
    }

    /// The axes that a step lists.
    func axes(_ step: Specification.Step) throws(HostError) -> [Int] {
        guard case .list(let axes)? = step.parameters.axes else { throw fault(step, "must list axes", "none") }
        return axes
    }

    /// The shape that a step gives, which memory can hold.
    private func shape(_ step: Specification.Step) throws(HostError) -> [Int] {
        let shape = try parameter(step.parameters.shape, step)
        guard shape.allSatisfy({ $0 > 0 }), BundleReader.elements(shape) != nil else {
            throw fault(step, "must give a shape that memory can hold", "\(shape)")
        }
        return shape
    }

    private func slice(
        _ step: Specification.Step, _ x: Value, _ start: Int, _ stop: Int
    ) throws(HostError) -> Value {
        let (axis, shape) = (try parameter(step.parameters.axis, step), x.shape)
        guard shape.indices.contains(axis), 0 <= start, start <= stop, stop <= shape[axis] else {
            throw fault(step, "must stay inside axis \(axis) of \(shape)", "\(start)..<\(stop)")
        }
        return x.map { $0.sliced(axis: axis, start..<stop) }
    }

    private func joined(_ step: Specification.Step, _ values: [Value]) throws(HostError) -> Value {
        let (axis, isStack) = (try parameter(step.parameters.axis, step), step.op == "stack")
        let (first, rank) = (values[0].shape, values[0].shape.count + (isStack ? 1 : 0))
        guard (0..<rank).contains(axis),
            values.allSatisfy({ value in
                var shape = value.shape
                if !isStack, shape.count == first.count { shape[axis] = first[axis] }
                return shape == first
            })
        else { throw fault(step, "must join what fits along axis \(axis)", "\(values.map(\.shape))") }
        func joined(_ tensors: [Tensor]) -> Tensor {
            .concatenated(
                tensors.map { tensor in
                    guard isStack else { return tensor }
                    var shape = tensor.shape
                    shape.insert(1, at: axis)
                    return tensor.reshaped(shape)
                }, axis: axis)
        }
        let parts = values.map(\.parts)
        let re = joined(parts.map(\.re))
        return parts.allSatisfy { $0.im == nil } ? .real(re) : .complex(re, joined(parts.map { $0.im ?? $0.re.zeros }))
    }

    /// Parts of x along an axis, changed by parts of y.
    private func changed(
        _ step: Specification.Step, _ x: Value, at indices: [Int], by y: Value, _ change: (inout Float, Float) -> Void
    ) throws(HostError) -> Value {
        let axis = try parameter(step.parameters.axis, step)
        guard x.shape.indices.contains(axis), indices.allSatisfy((0..<x.shape[axis]).contains) else {
            throw fault(step, "must stay inside axis \(axis) of \(x.shape)", "\(indices.prefix(8))")
        }
        var part = x.shape
        if step.op == "put" {
            part.remove(at: axis)
        } else {
            part[axis] = indices.count
        }
        guard step.op == "put" ? broadcast(y.shape, part) == part : y.shape == part else {
            throw fault(step, "must take a second value of the shape \(part)", "\(y.shape)")
        }
        return x.map(y) { $0.changed(axis: axis, at: indices, by: $1.repeated(to: part), change) }
    }

    private func taken(_ step: Specification.Step, _ x: Value) throws(HostError) -> Value {
        let (indices, shape) = (try parameter(step.parameters.indices, step), try shape(step))
        guard case .first(let axes)? = step.parameters.axes, (0...x.shape.count).contains(axes) else {
            throw fault(step, "must name a number of the axes of \(x.shape)", "another, or none")
        }
        let places = x.shape.prefix(axes).reduce(1, *)
        let rest = Array(x.shape.dropFirst(axes))
        guard indices.allSatisfy((0..<places).contains),
            indices.count * rest.reduce(1, *) == shape.reduce(1, *)
        else { throw fault(step, "must take elements of \(places) that fill \(shape)", "\(indices.count)") }
        return x.map { $0.reshaped([places] + rest).taken(indices).reshaped(shape) }
    }

    private func padded(_ step: Specification.Step, _ x: Value) throws(HostError) -> Value {
        let (before, after) = (try parameter(step.parameters.before, step), try parameter(step.parameters.after, step))
        let (shape, isReflected) = (x.shape, step.op == "pad_reflect")
        guard before.count == shape.count, after.count == shape.count,
            zip(shape, zip(before, after)).allSatisfy({ extent, counts in
                counts.0 >= 0 && counts.1 >= 0 && counts.0 + counts.1 < 1 << 31
                    && (!isReflected || max(counts.0, counts.1) < extent)
            })
        else { throw fault(step, "must pad \(shape) by what it holds", "\(before), \(after)") }
        return x.map { $0.padded(before: before, after: after, reflected: isReflected) }
    }
}
