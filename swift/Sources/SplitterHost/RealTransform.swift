import Accelerate
import SplitterBundle

/// Short-time Fourier transforms by `vDSP_fft_zrip`: its factors and its packing are dealt with here and nowhere else.
final class RealTransform: @unchecked Sendable {  // vDSP only reads a setup
    private let setup: FFTSetup

    /// Tables for transforms of up to `longest` samples.
    ///
    /// - Throws: `HostError.specification` for a length that is no power of two.
    init(longest: Int) throws(HostError) {
        guard longest >= 2, longest & (longest - 1) == 0, longest <= 1 << 24,
            let setup = vDSP_create_fftsetup(Self.log2(longest), FFTRadix(kFFTRadix2))
        else {
            throw .specification(
                invariant: "a transform's length must be a power of two", received: "\(longest)",
                fix: "Give the stage another target.")
        }
        self.setup = setup
    }

    deinit {
        vDSP_destroy_fftsetup(setup)
    }

    /// re + i im = the transform of each windowed frame, at [item, bin, frame].
    func forward(
        _ sound: [Float], window: [Float], length: Int, hop: Int, batch: Int, samples: Int, frames: Int,
        re: inout [Float], im: inout [Float]
    ) {
        let (half, bins) = (length / 2, length / 2 + 1)
        var frame = [Float](repeating: 0, count: length)
        withScratch(half) { spectrum in
            var spectrum = spectrum
            var scale: Float = 0.5  // vDSP's forward transform is twice the mathematical one
            sound.withUnsafeBufferPointer { sound in
                re.withUnsafeMutableBufferPointer { re in
                    im.withUnsafeMutableBufferPointer { im in
                        for item in 0..<batch {
                            for t in 0..<frames {
                                let from = sound.baseAddress! + item * samples + t * hop
                                vDSP_vmul(from, 1, window, 1, &frame, 1, vDSP_Length(length))
                                frame.withUnsafeBytes {
                                    vDSP_ctoz(
                                        $0.bindMemory(to: DSPComplex.self).baseAddress!, 2, &spectrum, 1,
                                        vDSP_Length(half))
                                }
                                vDSP_fft_zrip(
                                    setup, &spectrum, 1, Self.log2(length), FFTDirection(kFFTDirection_Forward))
                                let place = item * bins * frames + t
                                let (real, imaginary) = (re.baseAddress! + place, im.baseAddress! + place)
                                vDSP_vsmul(spectrum.realp, 1, &scale, real, frames, vDSP_Length(half))
                                vDSP_vsmul(spectrum.imagp, 1, &scale, imaginary, frames, vDSP_Length(half))
                                real[half * frames] = imaginary[0]  // the Nyquist bin lies in bin 0's imaginary part
                                imaginary[0] = 0
                                imaginary[half * frames] = 0
                            }
                        }
                    }
                }
            }
        }
    }

    /// The sum of all windowed frames of one item, each at its place; `window` divides by the transform's length.
    func inverse(
        _ re: [Float], _ im: [Float], window: [Float], length: Int, hop: Int, item: Int, frames: Int,
        into signal: inout [Float]
    ) {
        let (half, bins) = (length / 2, length / 2 + 1)
        var frame = [Float](repeating: 0, count: length)
        signal.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
        withScratch(half) { spectrum in
            var spectrum = spectrum
            signal.withUnsafeMutableBufferPointer { signal in
                for t in 0..<frames {
                    let place = item * bins * frames + t
                    for bin in 0..<half {
                        spectrum.realp[bin] = re[place + bin * frames]
                        spectrum.imagp[bin] = im[place + bin * frames]
                    }
                    spectrum.imagp[0] = re[place + half * frames]
                    vDSP_fft_zrip(setup, &spectrum, 1, Self.log2(length), FFTDirection(kFFTDirection_Inverse))
                    frame.withUnsafeMutableBytes {
                        vDSP_ztoc(&spectrum, 1, $0.bindMemory(to: DSPComplex.self).baseAddress!, 2, vDSP_Length(half))
                    }
                    vDSP_vmul(frame, 1, window, 1, &frame, 1, vDSP_Length(length))
                    let target = signal.baseAddress! + t * hop
                    vDSP_vadd(target, 1, frame, 1, target, 1, vDSP_Length(length))
                }
            }
        }
    }

    private func withScratch(_ half: Int, _ body: (DSPSplitComplex) -> Void) {
        withUnsafeTemporaryAllocation(of: Float.self, capacity: 2 * half) { memory in
            memory.initialize(repeating: 0)
            body(DSPSplitComplex(realp: memory.baseAddress!, imagp: memory.baseAddress! + half))
        }
    }

    private static func log2(_ length: Int) -> vDSP_Length { vDSP_Length(length.trailingZeroBitCount) }
}
