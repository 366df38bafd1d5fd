import SplitterBundle

/// What a host specification's file says.
struct Specification: Decodable, Sendable {
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
        let shape, before, after, indices: [Int]?
        let axes: Axes?
        let axis, start, stop, index, length, fft_length, hop_length, trim: Int?
        let scale, correction, value: Float?
        let values: [Float]?
        let dtype: String?
    }

    /// Some axes, or the number of the first ones.
    enum Axes: Decodable, Sendable {
        case list([Int])
        case first(Int)

        init(from decoder: any Decoder) throws {
            let content = try decoder.singleValueContainer()
            if let count = try? content.decode(Int.self) {
                self = .first(count)
            } else {
                self = .list(try content.decode([Int].self))
            }
        }
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
enum Value {
    case real(Tensor)
    case complex(Tensor, Tensor)

    /// Real and imaginary part; none where it is real.
    var parts: (re: Tensor, im: Tensor?) {
        switch self {
        case .real(let tensor): (tensor, nil)
        case .complex(let re, let im): (re, im)
        }
    }

    var shape: [Int] { parts.re.shape }

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

    /// What a move makes of two values, part by part; complex if one of them is.
    func map(_ other: Value, _ move: (Tensor, Tensor) -> Tensor) -> Value {
        let (left, right) = (parts, other.parts)
        guard left.im != nil || right.im != nil else { return .real(move(left.re, right.re)) }
        let (x, y) = (left.im ?? left.re.zeros, right.im ?? right.re.zeros)
        return .complex(move(left.re, right.re), move(x, y))
    }

    func real(_ step: Specification.Step, _ host: HostTransform) throws(HostError) -> Tensor {
        guard case .real(let tensor) = self else { throw host.fault(step, "must take real numbers", "complex ones") }
        return tensor
    }
}
