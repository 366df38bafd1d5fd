import Accelerate
import XCTest

@testable import SplitterBundle
@testable import SplitterHost

final class TransformTests: XCTestCase {
    private let length = 64
    private lazy var sound = (0..<length).map { Float(sin(0.37 * Double($0 * $0))) }

    /// Σ x[n] e^(−2πi f n / N), in double precision.
    private func spectrum(bin: Int) -> (re: Double, im: Double) {
        sound.enumerated().reduce(into: (0, 0)) { sum, sample in
            let angle = -2 * Double.pi * Double(bin * sample.offset) / Double(length)
            sum.0 += Double(sample.element) * cos(angle)
            sum.1 += Double(sample.element) * sin(angle)
        }
    }

    func testForwardIsTheTransformAsDefined() throws {
        let transform = try RealTransform(longest: 4 * length)  // a longer table serves a shorter transform
        var (re, im) = ([Float](repeating: 7, count: length / 2 + 1), [Float](repeating: 7, count: length / 2 + 1))
        transform.forward(
            sound, window: [Float](repeating: 1, count: length), length: length, hop: 1, batch: 1, samples: length,
            frames: 1, re: &re, im: &im)
        for bin in 0...length / 2 {
            let expected = spectrum(bin: bin)
            XCTAssertEqual(Double(re[bin]), expected.re, accuracy: 1e-5, "bin \(bin)")
            XCTAssertEqual(Double(im[bin]), expected.im, accuracy: 1e-5, "bin \(bin)")
        }
    }

    func testInverseUndoesForward() throws {
        let transform = try RealTransform(longest: length)
        var (re, im) = ([Float](repeating: 0, count: length / 2 + 1), [Float](repeating: 0, count: length / 2 + 1))
        let ones = [Float](repeating: 1, count: length)
        transform.forward(
            sound, window: ones, length: length, hop: 1, batch: 1, samples: length, frames: 1, re: &re, im: &im)
        var signal = [Float](repeating: 7, count: length)
        transform.inverse(
            re, im, window: ones.map { $0 / Float(length) }, length: length, hop: 1, item: 0, frames: 1, into: &signal)
        for (given, expected) in zip(signal, sound) {
            XCTAssertEqual(given, expected, accuracy: 1e-6)
        }
    }

    /// The stand-in keeps to what Apple documents: twice the transform, the Nyquist bin in bin 0's imaginary part.
    func testRealTransformsAreScaledAndPackedAsApples() throws {
        let setup = try XCTUnwrap(vDSP_create_fftsetup(6, FFTRadix(kFFTRadix2)))
        defer { vDSP_destroy_fftsetup(setup) }
        var even = stride(from: 0, to: length, by: 2).map { sound[$0] }
        var odd = stride(from: 1, to: length, by: 2).map { sound[$0] }
        even.withUnsafeMutableBufferPointer { even in
            odd.withUnsafeMutableBufferPointer { odd in
                var split = DSPSplitComplex(realp: even.baseAddress!, imagp: odd.baseAddress!)
                vDSP_fft_zrip(setup, &split, 1, 6, FFTDirection(kFFTDirection_Forward))
            }
        }
        XCTAssertEqual(Double(even[0]), 2 * spectrum(bin: 0).re, accuracy: 1e-5)
        XCTAssertEqual(Double(odd[0]), 2 * spectrum(bin: length / 2).re, accuracy: 1e-5)
        XCTAssertEqual(Double(even[5]), 2 * spectrum(bin: 5).re, accuracy: 1e-5)
        XCTAssertEqual(Double(odd[5]), 2 * spectrum(bin: 5).im, accuracy: 1e-5)
    }

    func testLengthsThatAreNoPowersOfTwoAreRefused() {
        XCTAssertThrowsError(try RealTransform(longest: 12)) { error in
            XCTAssertTrue("\(error)".contains("power of two"), "\(error)")
        }
    }
}
