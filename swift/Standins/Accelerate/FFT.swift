#if canImport(Glibc)
    import Glibc
#endif

public typealias FFTSetup = OpaquePointer
public typealias FFTRadix = Int32
public typealias FFTDirection = Int32
public var kFFTRadix2: Int { 0 }
public var kFFTDirection_Forward: Int { 1 }
public var kFFTDirection_Inverse: Int { -1 }

/// cos and sin of 2 π k / length for the longest transform.
private final class Setup {
    let log2n: UInt
    let cosines: [Float]
    let sines: [Float]

    init(log2n: UInt) {
        self.log2n = log2n
        let length = 1 << log2n
        cosines = (0..<length).map { Float(cos(2 * Double.pi * Double($0) / Double(length))) }
        sines = (0..<length).map { Float(sin(2 * Double.pi * Double($0) / Double(length))) }
    }
}

/// Tables for transforms of up to 2^log2n real numbers; nil for a radix that the stand-in lacks.
public func vDSP_create_fftsetup(_ log2n: vDSP_Length, _ radix: FFTRadix) -> FFTSetup? {
    guard radix == FFTRadix(kFFTRadix2), log2n < 30 else { return nil }
    return OpaquePointer(Unmanaged.passRetained(Setup(log2n: log2n)).toOpaque())
}

public func vDSP_destroy_fftsetup(_ setup: FFTSetup?) {
    setup.map { Unmanaged<Setup>.fromOpaque(UnsafeRawPointer($0)).release() }
}

/// A real transform in place, packed as Apple packs it: even samples in the real, odd ones in the imaginary vector;
/// of the spectrum, the Nyquist bin's real part lies where the imaginary part of bin 0 would, which is zero.
/// Forward gives twice the mathematical transform; inverse gives the sum over all N bins, N times the mathematical one.
public func vDSP_fft_zrip(
    _ setup: FFTSetup, _ c: UnsafePointer<DSPSplitComplex>, _ ic: vDSP_Stride, _ log2n: vDSP_Length,
    _ direction: FFTDirection
) {
    let tables = Unmanaged<Setup>.fromOpaque(UnsafeRawPointer(setup)).takeUnretainedValue()
    precondition(log2n <= tables.log2n && log2n >= 1, "the setup is too short")
    precondition(ic == 1, "the stand-in transforms dense vectors only")
    let (re, im, half) = (c.pointee.realp, c.pointee.imagp, 1 << (log2n - 1))
    tables.cosines.withUnsafeBufferPointer { cosines in
        tables.sines.withUnsafeBufferPointer { sines in
            let step = cosines.count >> log2n  // of the table, for one step of this length
            if direction == FFTDirection(kFFTDirection_Forward) {
                transform(re, im, half, cosines, sines, sign: -1)
                untangle(re, im, half, cosines, sines, step, sign: -1)
                (re[0], im[0]) = (2 * (re[0] + im[0]), 2 * (re[0] - im[0]))
            } else {
                (re[0], im[0]) = (re[0] + im[0], re[0] - im[0])
                untangle(re, im, half, cosines, sines, step, sign: 1)
                transform(re, im, half, cosines, sines, sign: 1)
            }
        }
    }
}

/// Z[k] + Z*[M−k] ± i W^∓k (Z[k] − Z*[M−k]) for 0 < k < M: the step between M complex and 2M real numbers.
private func untangle(
    _ re: UnsafeMutablePointer<Float>, _ im: UnsafeMutablePointer<Float>, _ half: Int,
    _ cosines: UnsafeBufferPointer<Float>, _ sines: UnsafeBufferPointer<Float>, _ step: Int, sign: Float
) {
    for k in stride(from: 1, through: half / 2, by: 1) {
        let j = half - k
        let (sumRe, sumIm) = (re[k] + re[j], im[k] - im[j])
        let (differenceRe, differenceIm) = (re[k] - re[j], im[k] + im[j])
        let (x, y) = (cosines[k * step], sign * sines[k * step])
        // ± i · W · difference
        let turnedRe = -sign * (x * differenceIm + y * differenceRe)
        let turnedIm = sign * (x * differenceRe - y * differenceIm)
        (re[k], im[k]) = (sumRe + turnedRe, sumIm + turnedIm)
        (re[j], im[j]) = (sumRe - turnedRe, turnedIm - sumIm)
    }
}

/// A complex transform of a power of two, unscaled.
private func transform(
    _ re: UnsafeMutablePointer<Float>, _ im: UnsafeMutablePointer<Float>, _ count: Int,
    _ cosines: UnsafeBufferPointer<Float>, _ sines: UnsafeBufferPointer<Float>, sign: Float
) {
    var reversed = 0
    for i in 1..<max(count, 1) {
        var bit = count >> 1
        while reversed & bit != 0 {
            reversed ^= bit
            bit >>= 1
        }
        reversed |= bit
        if i < reversed {
            (re[i], re[reversed]) = (re[reversed], re[i])
            (im[i], im[reversed]) = (im[reversed], im[i])
        }
    }
    var length = 2
    while length <= count {
        let (half, step) = (length / 2, cosines.count / length)
        for start in stride(from: 0, to: count, by: length) {
            for k in 0..<half {
                let (a, b) = (start + k, start + k + half)
                let (x, y) = (cosines[k * step], sign * sines[k * step])
                let (turnedRe, turnedIm) = (re[b] * x - im[b] * y, re[b] * y + im[b] * x)
                (re[b], im[b]) = (re[a] - turnedRe, im[a] - turnedIm)
                (re[a], im[a]) = (re[a] + turnedRe, im[a] + turnedIm)
            }
        }
        length *= 2
    }
}
