import Accelerate
import Foundation
import SplitterBundle

/// Executes a host specification (`analysis.json`, `synthesis.json`): the steps between sound and the first segment,
/// and between the last one and sound. The words mean what `splitter/runtime/host.py` says.
public struct HostTransform: Sendable {
    private let specification: Specification
    private let transform: RealTransform
    private let name: String

    /// Read a specification and make the tables of its longest transform.
    ///
    /// - Throws: `HostError.bundle` for a file that is not what was built; `HostError.specification` for a step that
    ///   this host cannot execute.
    public init(_ bundle: BundleReader, _ segment: SegmentRecord) throws(HostError) {
        name = segment.artifact.path
        do {
            let file = try bundle.file(segment.artifact.path)
            specification = try JSONDecoder().decode(Specification.self, from: Data(file.bytes))
        } catch let error as HostError {
            throw error
        } catch {
            throw .specification(
                invariant: "\(segment.artifact.path) must be a host specification", received: "\(error)",
                fix: "Build the bundle again.")
        }
        guard specification.format == Specification.format else {
            throw .specification(
                invariant: "\(name) must be of the format \(Specification.format)", received: specification.format,
                fix: "Build the bundle again.")
        }
        transform = try RealTransform(longest: specification.steps.compactMap(\.parameters.fft_length).max() ?? 2)
    }

    /// Run all steps, freeing each value after its last use.
    ///
    /// - Returns: The outputs by name.
    /// - Throws: `HostError.specification`, naming the step.
    public func run(_ inputs: [String: Tensor]) throws(HostError) -> [String: Tensor] {
        try run(inputs, observe: nil)
    }

    /// The same, and show every step's result, but for those that only give other extents.
    func run(_ inputs: [String: Tensor], observe: ((Tap) -> Void)?) throws(HostError) -> [String: Tensor] {
        var values = inputs.mapValues { Value.real($0) }
        var lastUse: [String: Int] = [:]
        for (index, step) in specification.steps.enumerated() {
            for case .name(let argument) in step.arguments {
                lastUse[argument] = index
            }
        }
        let kept = Set(specification.outputs.values)
        for (index, step) in specification.steps.enumerated() {
            var arguments: [Value] = []
            for argument in step.arguments {
                arguments.append(try value(argument, of: step, in: values))
            }
            let result = try execute(step, arguments)
            guard result.shape == step.shape, result.dtype == step.dtype else {
                throw fault(step, "must give \(step.shape) \(step.dtype)", "\(result.shape) \(result.dtype)")
            }
            values[step.result] = result
            if let observe, step.op != "reshape" {
                observe(result.tap("\(specification.stage).\(step.result)"))
            }
            for case .name(let argument) in step.arguments where lastUse[argument] == index && !kept.contains(argument)
            {
                values[argument] = nil
            }
        }
        var outputs: [String: Tensor] = [:]
        for (output, source) in specification.outputs {
            guard case .real(let tensor)? = values[source] else {
                throw .specification(
                    invariant: "\(name) must give \(output) as real numbers",
                    received: "\(source), which no step gives",
                    fix: "Build the bundle again.")
            }
            outputs[output] = tensor
        }
        return outputs
    }

    private func value(
        _ argument: Specification.Argument, of step: Specification.Step, in values: [String: Value]
    ) throws(HostError) -> Value {
        switch argument {
        case .number(let number): return .real(Tensor(shape: [], values: [number]))
        case .name(let name):
            guard let value = values[name] else { throw fault(step, "must read what an earlier step gives", name) }
            return value
        }
    }

    private func execute(_ step: Specification.Step, _ arguments: [Value]) throws(HostError) -> Value {
        let parameters = step.parameters
        switch (step.op, arguments.count) {
        case ("hann_window", 0): return try .real(hannWindow(step))
        case ("reshape", 1):
            let shape = try parameter(parameters.shape, step)
            guard shape.reduce(1, *) == arguments[0].shape.reduce(1, *) else {
                throw fault(step, "must keep the number of elements", "\(arguments[0].shape) as \(shape)")
            }
            return arguments[0].map { $0.reshaped(shape) }
        case ("transpose", 1):
            let axes = try parameter(parameters.axes, step)
            guard axes.sorted() == Array(arguments[0].shape.indices) else {
                throw fault(step, "must name every axis once", "\(axes)")
            }
            return arguments[0].map { $0.transposed(axes) }
        case ("slice", 1):
            let (axis, start) = (try parameter(parameters.axis, step), try parameter(parameters.start, step))
            let (stop, shape) = (try parameter(parameters.stop, step), arguments[0].shape)
            guard shape.indices.contains(axis), 0 <= start, start <= stop, stop <= shape[axis] else {
                throw fault(step, "must stay inside axis \(axis) of \(shape)", "\(start)..<\(stop)")
            }
            return arguments[0].map { $0.sliced(axis: axis, start..<stop) }
        case ("pad_zero", 1), ("pad_reflect", 1):
            let (before, after) = (try parameter(parameters.before, step), try parameter(parameters.after, step))
            let (shape, isReflected) = (arguments[0].shape, step.op == "pad_reflect")
            guard before.count == shape.count, after.count == shape.count,
                zip(shape, zip(before, after)).allSatisfy({ extent, counts in
                    counts.0 >= 0 && counts.1 >= 0 && counts.0 + counts.1 < 1 << 31
                        && (!isReflected || max(counts.0, counts.1) < extent)
                })
            else { throw fault(step, "must pad \(shape) by what it holds", "\(before), \(after)") }
            return arguments[0].map { $0.padded(before: before, after: after, reflected: isReflected) }
        case ("stft", 2): return try stft(step, arguments[0].real(step, self), arguments[1].real(step, self))
        case ("istft", 2): return try .real(istft(step, arguments[0], arguments[1].real(step, self)))
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
        case ("mean", 1), ("std", 1):
            return try .real(moment(step, arguments[0].real(step, self)))
        case ("add", 2), ("subtract", 2), ("multiply", 2), ("divide", 2):
            return try .real(arithmetic(step, arguments[0].real(step, self), arguments[1].real(step, self)))
        default:
            throw fault(step, "must be an operation that this host knows", "\(step.op) of \(arguments.count) arguments")
        }
    }

    private func hannWindow(_ step: Specification.Step) throws(HostError) -> Tensor {
        let length = try parameter(step.parameters.length, step)
        guard (1...1 << 24).contains(length) else { throw fault(step, "must have a possible length", "\(length)") }
        let values = (0..<length).map { Float(0.5 - 0.5 * cos(2 * Double.pi * Double($0) / Double(length))) }
        return Tensor(shape: [length], values: values)
    }

    /// (…, samples) → (…, bins, frames), complex.
    private func stft(_ step: Specification.Step, _ sound: Tensor, _ window: Tensor) throws(HostError) -> Value {
        let (length, hop) = (
            try parameter(step.parameters.fft_length, step), try parameter(step.parameters.hop_length, step)
        )
        let scale = try parameter(step.parameters.scale, step)
        guard window.shape == [length], hop > 0, let samples = sound.shape.last, samples >= length else {
            throw fault(step, "must have a window of \(length) and as many samples", "\(window.shape), \(sound.shape)")
        }
        let (batch, frames, bins) = (sound.count / samples, (samples - length) / hop + 1, length / 2 + 1)
        var re = [Float](repeating: 0, count: batch * bins * frames)
        var im = re
        var scaled = [Float](repeating: 0, count: length)
        var factor = scale
        vDSP_vsmul(window.values, 1, &factor, &scaled, 1, vDSP_Length(length))
        transform.forward(
            sound.values, window: scaled, length: length, hop: hop, batch: batch, samples: samples, frames: frames,
            re: &re, im: &im)
        let shape = Array(sound.shape.dropLast()) + [bins, frames]
        return .complex(Tensor(shape: shape, values: re), Tensor(shape: shape, values: im))
    }

    /// (…, bins, frames) → (…, length).
    private func istft(_ step: Specification.Step, _ spectrum: Value, _ window: Tensor) throws(HostError) -> Tensor {
        let (length, hop) = (
            try parameter(step.parameters.fft_length, step), try parameter(step.parameters.hop_length, step)
        )
        let (scale, trim) = (try parameter(step.parameters.scale, step), try parameter(step.parameters.trim, step))
        let kept = try parameter(step.parameters.length, step)
        guard case .complex(let re, let im) = spectrum, re.shape.count >= 2, window.shape == [length], hop > 0,
            scale != 0,
            re.shape[re.shape.count - 2] == length / 2 + 1, let frames = re.shape.last, frames > 0,
            trim >= 0, kept > 0, trim + kept <= length + hop * (frames - 1)
        else { throw fault(step, "must take \(length / 2 + 1) bins and give what they hold", "\(spectrum.shape)") }
        let batch = re.count / (frames * (length / 2 + 1))
        let total = length + hop * (frames - 1)
        var scaled = [Float](repeating: 0, count: length)
        var factor = 1 / (scale * Float(length))  // vDSP's inverse is N times the mathematical one
        vDSP_vsmul(window.values, 1, &factor, &scaled, 1, vDSP_Length(length))
        var envelope = [Float](repeating: 0, count: total)
        var square = [Float](repeating: 0, count: length)
        vDSP_vmul(window.values, 1, window.values, 1, &square, 1, vDSP_Length(length))
        envelope.withUnsafeMutableBufferPointer { envelope in
            for frame in 0..<frames {
                let place = envelope.baseAddress! + frame * hop
                vDSP_vadd(place, 1, square, 1, place, 1, vDSP_Length(length))
            }
        }
        var result = [Float](repeating: 0, count: batch * kept)
        var signal = [Float](repeating: 0, count: total)
        for item in 0..<batch {
            transform.inverse(
                re.values, im.values, window: scaled, length: length, hop: hop, item: item, frames: frames,
                into: &signal)
            result.withUnsafeMutableBufferPointer { result in
                signal.withUnsafeBufferPointer { signal in
                    envelope.withUnsafeBufferPointer { envelope in
                        vDSP_vdiv(
                            envelope.baseAddress! + trim, 1, signal.baseAddress! + trim, 1,
                            result.baseAddress! + item * kept, 1, vDSP_Length(kept))
                    }
                }
            }
        }
        return Tensor(shape: Array(re.shape.dropLast(2)) + [kept], values: result)
    }

    /// Mean or standard deviation over some axes, in double precision.
    private func moment(_ step: Specification.Step, _ x: Tensor) throws(HostError) -> Tensor {
        let axes = try parameter(step.parameters.axes, step)
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

    private func arithmetic(_ step: Specification.Step, _ x: Tensor, _ y: Tensor) throws(HostError) -> Tensor {
        guard let shape = broadcast(x.shape, y.shape) else {
            throw fault(step, "must take shapes that fit each other", "\(x.shape) and \(y.shape)")
        }
        let (left, right) = (x.expanded(to: shape), y.expanded(to: shape))
        var result = [Float](repeating: 0, count: shape.reduce(1, *))
        let count = vDSP_Length(result.count)
        switch step.op {
        case "add": vDSP_vadd(left.values, left.step, right.values, right.step, &result, 1, count)
        case "subtract": vDSP_vsub(right.values, right.step, left.values, left.step, &result, 1, count)
        case "multiply": vDSP_vmul(left.values, left.step, right.values, right.step, &result, 1, count)
        default: vDSP_vdiv(right.values, right.step, left.values, left.step, &result, 1, count)
        }
        return Tensor(shape: shape, values: result)
    }

    private func parameter<Parameter>(_ given: Parameter?, _ step: Specification.Step) throws(HostError) -> Parameter {
        guard let given else { throw fault(step, "must have the parameters of \(step.op)", "too few") }
        return given
    }

    fileprivate func fault(_ step: Specification.Step, _ invariant: String, _ received: String) -> HostError {
        .specification(
            invariant: "step \(step.result) of \(name) \(invariant)", received: received, fix: "Build the bundle again."
        )
    }
}

/// What a host specification's file says.
private struct Specification: Decodable, Sendable {
    static let format = "splitter.host/1"

    struct Step: Decodable, Sendable {
        let result: String
        let op: String
        let arguments: [Argument]
        let parameters: Parameters
        let shape: [Int]
        let dtype: String
    }

    /// What operations take, each some of it.
    struct Parameters: Decodable, Sendable {
        let shape, axes, before, after: [Int]?
        let axis, start, stop, length, fft_length, hop_length, trim: Int?
        let scale, correction: Float?
    }

    /// Name of an earlier result or an input, or a number.
    enum Argument: Decodable, Sendable {
        case name(String)
        case number(Float)

        init(from decoder: any Decoder) throws {
            let content = try decoder.singleValueContainer()
            if let number = try? content.decode(Float.self) {
                self = .number(number)
            } else {
                self = .name(try content.decode(String.self))
            }
        }
    }

    let format: String
    let stage: String
    let steps: [Step]
    let outputs: [String: String]
}

/// Real numbers, or complex ones as real and imaginary parts.
private enum Value {
    case real(Tensor)
    case complex(Tensor, Tensor)

    var shape: [Int] {
        switch self {
        case .real(let tensor), .complex(let tensor, _): tensor.shape
        }
    }

    /// NumPy's name of the element type.
    var dtype: String {
        switch self {
        case .real: "float32"
        case .complex: "complex64"
        }
    }

    func tap(_ name: String) -> Tap {
        switch self {
        case .real(let tensor): Tap(name: name, tensor: tensor)
        case .complex(let re, let im): Tap(name: name, tensor: re, imaginary: im)
        }
    }

    func map(_ move: (Tensor) -> Tensor) -> Value {
        switch self {
        case .real(let tensor): .real(move(tensor))
        case .complex(let re, let im): .complex(move(re), move(im))
        }
    }

    func real(_ step: Specification.Step, _ host: HostTransform) throws(HostError) -> Tensor {
        guard case .real(let tensor) = self else { throw host.fault(step, "must take real numbers", "complex ones") }
        return tensor
    }
}
