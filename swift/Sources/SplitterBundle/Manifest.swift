/// What `manifest.json` says, as far as the host reads it. Formats and keys are those of `docs/manifest.schema.json`.
public struct Manifest: Decodable, Sendable {
    public static let format = "splitter.bundle/2"

    public let model: ModelRecord
    public let plan: PlanRecord
    public let tensors: [TensorSpec]
    /// In order of execution.
    public let segments: [SegmentRecord]
    public let golden: GoldenRecord
    /// Size and hash of every file, by path.
    public let files: [String: FileRecord]
    public let digest: String
}

/// Several bundles whose stems are averaged.
public struct BagManifest: Decodable, Sendable {
    public static let format = "splitter.bag/2"

    public let name: String
    public let members: [String]
    public let digests: [String]
    /// `weights[member][stem]`.
    public let weights: [[Float]]
}

public struct ModelRecord: Decodable, Sendable {
    public let name: String
    /// Of a separator; nil for other models.
    public let audio: AudioRecord?
}

/// What a separator says of itself: stems in the order of its output, Hz, channels, samples in one run.
public struct AudioRecord: Decodable, Sendable, Equatable {
    public let stems: [String]
    public let samplerate: Int
    public let channels: Int
    public let samples: Int
    /// As HT Demucs where nil.
    public let chunking: Chunking?
}

/// How the model's own inference cuts a song into runs.
public struct Chunking: Decodable, Sendable, Equatable {
    /// The song's mean is taken from it, and it is divided by its deviation.
    public var normalised = true
    /// Samples from one chunk to the next; three quarters of a chunk where nil.
    public var stride: Int?
    /// Samples over which a chunk's weight rises and falls; half of it each, a triangle, where nil.
    public var fade: Int?
    /// What lies around the song.
    public var edges = Edges.silence
    /// Passes with a random shift to average.
    public var shifts = 1

    /// Nothing, or the song's mirror image, as long as two chunks overlap.
    public enum Edges: String, Decodable, Sendable { case silence, reflection }

    public init() {}
}

/// The contract of one tensor that a segment hands to later ones.
public struct TensorSpec: Decodable, Sendable {
    public let name: String
    public let shape: [Int]
    /// NumPy's name of the element type.
    public let dtype: String
    public let producer: String
    public let consumers: [String]
    /// How packages take and give it where its last axis is long.
    public let fold: Fold?

    /// Extents inside a package.
    public var packagedShape: [Int] {
        if shape.isEmpty { return [1] }
        return fold.map { Array(shape.dropLast()) + [$0.rows, $0.columns] } ?? shape
    }
}

/// A long last axis as rows, with zeros behind its end.
public struct Fold: Decodable, Sendable {
    public let length: Int
    public let rows: Int
    public let columns: Int
}

public struct SegmentRecord: Decodable, Sendable {
    public let name: String
    public let inputs: [String]
    public let outputs: [String]
    public let artifact: Artifact
}

/// What a segment was lowered to.
public struct Artifact: Decodable, Sendable {
    public let target: String
    public let path: String
    /// Of a segment for the kernels.
    public let transformer: TransformerRecord?

    private enum Keys: String, CodingKey { case target, path, details }

    public init(from decoder: any Decoder) throws {
        let content = try decoder.container(keyedBy: Keys.self)
        target = try content.decode(String.self, forKey: .target)
        path = try content.decode(String.self, forKey: .path)
        transformer = target == "kernels" ? try content.decode(TransformerRecord.self, forKey: .details) : nil
    }
}

/// What the plan says of checks.
public struct PlanRecord: Decodable, Sendable {
    /// A difference that no check minds, whatever its decibels.
    public let negligible: Double

    private enum Keys: String, CodingKey { case tolerances }
    private enum ToleranceKeys: String, CodingKey { case negligible = "negligible_max_abs" }

    public init(from decoder: any Decoder) throws {
        let tolerances = try decoder.container(keyedBy: Keys.self)
            .nestedContainer(keyedBy: ToleranceKeys.self, forKey: .tolerances)
        negligible = try tolerances.decode(Double.self, forKey: .negligible)
    }
}

public struct GoldenRecord: Decodable, Sendable {
    public let path: String
}

public struct FileRecord: Decodable, Sendable {
    public let bytes: Int
    public let sha256: String
}

/// What the manifest says of the transformer's file (`docs/transformer.schema.json`).
public struct TransformerRecord: Decodable, Sendable {
    public static let format = "splitter.transformer/2"

    public let format: String
    public let config: TransformerConfig
    /// Boundary tensors of the frequency and of the time branch, going in and coming out.
    public let inputs: [String]
    public let outputs: [String]
    /// Every tensor of the file by name.
    public let tensors: [String: TensorRecord]
}

/// What distinguishes one cross-domain transformer from another (`splitter_kernels/spec.py`).
public struct TransformerConfig: Decodable, Sendable, Equatable {
    public let width: Int
    public let heads: Int
    public let layers: Int
    public let hidden: Int
    public let freqTokens: Int
    public let timeTokens: Int
    public let crossFirst: Bool
    public let eps: Float

    private enum CodingKeys: String, CodingKey {
        case width, heads, layers, hidden, eps
        case freqTokens = "freq_tokens"
        case timeTokens = "time_tokens"
        case crossFirst = "cross_first"
    }

    /// Self- and cross-attention alternate.
    public func isCross(layer: Int) -> Bool { (layer % 2 == 0) == crossFirst }
}

/// Where one tensor lies in the transformer's file.
public struct TensorRecord: Decodable, Sendable {
    public let parameter: String
    /// Of the decoded parameter.
    public let parameterShape: [Int]
    /// `values`, or `int8` and `scales`, or `indices` and `table`.
    public let role: String
    public let shape: [Int]
    public let dtype: String
    public let offset: Int
    public let bytes: Int

    private enum CodingKeys: String, CodingKey {
        case parameter, role, shape, dtype, offset, bytes
        case parameterShape = "parameter_shape"
    }
}
