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

    /// The same, and show what every step makes of others' results, but for those that only give other extents.
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
            if let observe, step.op != "reshape", !step.arguments.isEmpty {
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
        if let moved = try moved(step, arguments) { return moved }
        switch (step.op, arguments.count) {
        case ("hann_window", 0): return try .real(hannWindow(step))
        case ("stft", 2): return try stft(step, arguments[0].real(step, self), arguments[1].real(step, self))
        case ("istft", 2): return try .real(istft(step, arguments[0], arguments[1].real(step, self)))
        case ("mean", 1), ("std", 1):
            return try .real(moment(step, arguments[0].real(step, self)))
        case ("add", 2), ("subtract", 2), ("multiply", 2), ("divide", 2):
            return try arithmetic(step, arguments[0], arguments[1])
        case ("magnitude", 1): return .real(magnitude(arguments[0]))
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

    func parameter<Parameter>(_ given: Parameter?, _ step: Specification.Step) throws(HostError) -> Parameter {
        guard let given else { throw fault(step, "must have the parameters of \(step.op)", "too few") }
        return given
    }

    func fault(_ step: Specification.Step, _ invariant: String, _ received: String) -> HostError {
        .specification(
            invariant: "step \(step.result) of \(name) \(invariant)", received: received, fix: "Build the bundle again."
        )
    }
}
