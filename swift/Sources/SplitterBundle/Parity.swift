import Foundation

/// How near one tensor is to another, in double precision.
public struct Parity: Sendable {
    /// 10 log₁₀ of the reference's energy over that of the difference; infinite where they are equal, nil where the
    /// reference is silent and they are not.
    public let decibels: Double?
    public let largestDifference: Double

    public init(reference: [Float], computed: [Float]) {
        var (energy, noise, largest) = (0.0, 0.0, 0.0)
        for (expected, value) in zip(reference, computed) {
            let difference = Double(value) - Double(expected)
            energy += Double(expected) * Double(expected)
            noise += difference * difference
            largest = max(largest, abs(difference))
        }
        largestDifference = largest
        decibels = noise == 0 ? .infinity : energy == 0 ? nil : 10 * log10(energy / noise)
    }

    /// True if it is near enough, or the difference negligible.
    public func reaches(_ limit: Double, negligible: Double) -> Bool {
        largestDifference <= negligible || decibels.map { $0 >= limit } == true
    }
}
