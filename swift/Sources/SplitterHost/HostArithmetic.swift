import Accelerate
import SplitterBundle

/// Operations of a host specification that compute with elements.
extension HostTransform {
    /// Mean or standard deviation over some axes, in double precision.
    func moment(_ step: Specification.Step, _ x: Tensor) throws(HostError) -> Tensor {
        let axes = try axes(step)
        let correction = step.op == "std" ? try parameter(step.parameters.correction, step) : 0
        guard axes.allSatisfy(x.shape.indices.contains), Set(axes).count == axes.count else {
            throw fault(step, "must reduce axes of \(x.shape)", "\(axes)")
        }
        let others = x.shape.indices.filter { !axes.contains($0) }
        let count = axes.reduce(1) { $0 * x.shape[$1] }
        guard count > 0, Double(count) > Double(correction) else {
            throw fault(step, "must reduce some values", "\(count)")
        }
        let rows = others.isEmpty || others == Array(0..<others.count) ? x : x.transposed(others + axes)
        var wide = [Double](repeating: 0, count: x.count)
        vDSP_vspdp(rows.values, 1, &wide, 1, vDSP_Length(x.count))
        var results: [Float] = []
        wide.withUnsafeMutableBufferPointer { wide in
            for start in stride(from: 0, to: wide.count, by: count) {
                let row = wide.baseAddress! + start
                var mean = 0.0
                vDSP_meanvD(row, 1, &mean, vDSP_Length(count))
                if step.op == "mean" {
                    results.append(Float(mean))
                    continue
                }
                var (negated, squares) = (-mean, 0.0)
                vDSP_vsaddD(row, 1, &negated, row, 1, vDSP_Length(count))
                vDSP_measqvD(row, 1, &squares, vDSP_Length(count))
                results.append(Float((squares * Double(count) / (Double(count) - Double(correction))).squareRoot()))
            }
        }
        return Tensor(shape: x.shape.indices.map { axes.contains($0) ? 1 : x.shape[$0] }, values: results)
    }

    /// Of real and of complex numbers.
    func arithmetic(_ step: Specification.Step, _ x: Value, _ y: Value) throws(HostError) -> Value {
        guard let shape = broadcast(x.shape, y.shape) else {
            throw fault(step, "must take shapes that fit each other", "\(x.shape) and \(y.shape)")
        }
        func combined(_ operation: Operation, _ x: Tensor, _ y: Tensor) -> Tensor {
            let (left, right) = (x.expanded(to: shape), y.expanded(to: shape))
            var result = [Float](repeating: 0, count: shape.reduce(1, *))
            let count = vDSP_Length(result.count)
            switch operation {
            case .add: vDSP_vadd(left.values, left.step, right.values, right.step, &result, 1, count)
            case .subtract: vDSP_vsub(right.values, right.step, left.values, left.step, &result, 1, count)
            case .multiply: vDSP_vmul(left.values, left.step, right.values, right.step, &result, 1, count)
            case .divide: vDSP_vdiv(right.values, right.step, left.values, left.step, &result, 1, count)
            }
            return Tensor(shape: shape, values: result)
        }
        func product(_ x: Value, _ y: Value) -> Value {
            let ((a, b), (c, d)) = (x.parts, y.parts)
            switch (b, d) {
            case (let b?, let d?):
                return .complex(
                    combined(.subtract, combined(.multiply, a, c), combined(.multiply, b, d)),
                    combined(.add, combined(.multiply, a, d), combined(.multiply, b, c)))
            case (let b?, nil): return .complex(combined(.multiply, a, c), combined(.multiply, b, c))
            case (nil, let d?): return .complex(combined(.multiply, a, c), combined(.multiply, a, d))
            case (nil, nil): return .real(combined(.multiply, a, c))
            }
        }
        switch Operation(rawValue: step.op) {
        case .multiply: return product(x, y)
        case .divide:
            guard case .complex(let c, let d) = y else { return x.map { combined(.divide, $0, y.parts.re) } }
            let square = combined(.add, combined(.multiply, c, c), combined(.multiply, d, d))
            let conjugate = Value.complex(c, combined(.subtract, d.zeros, d))
            return product(x, conjugate).map { combined(.divide, $0, square) }
        case .add: return x.map(y) { combined(.add, $0, $1) }
        case .subtract: return x.map(y) { combined(.subtract, $0, $1) }
        case nil: throw fault(step, "must be an operation that this host knows", step.op)
        }
    }

    private enum Operation: String { case add, subtract, multiply, divide }

    /// |x|, its squares in double precision.
    func magnitude(_ x: Value) -> Tensor {
        let (re, im) = x.parts
        guard let im else { return Tensor(shape: re.shape, values: re.values.map(abs)) }
        let values = zip(re.values, im.values).map { x, y in
            Float((Double(x) * Double(x) + Double(y) * Double(y)).squareRoot())
        }
        return Tensor(shape: re.shape, values: values)
    }
}
