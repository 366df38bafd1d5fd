// Stands in for Apple's Accelerate on Linux: the functions of vDSP that the host uses, with Apple's names, argument
// orders, scaling and packing. It shows neither Apple's speed nor the last bits of Apple's results.

public typealias vDSP_Length = UInt
public typealias vDSP_Stride = Int

public struct DSPComplex {
    public var real: Float
    public var imag: Float
    public init(real: Float, imag: Float) { (self.real, self.imag) = (real, imag) }
}

public struct DSPSplitComplex {
    public var realp: UnsafeMutablePointer<Float>
    public var imagp: UnsafeMutablePointer<Float>
    public init(realp: UnsafeMutablePointer<Float>, imagp: UnsafeMutablePointer<Float>) {
        (self.realp, self.imagp) = (realp, imagp)
    }
}

/// C = A + B
public func vDSP_vadd(
    _ a: UnsafePointer<Float>, _ ia: vDSP_Stride, _ b: UnsafePointer<Float>, _ ib: vDSP_Stride,
    _ c: UnsafeMutablePointer<Float>, _ ic: vDSP_Stride, _ n: vDSP_Length
) {
    for i in 0..<Int(n) { c[i * ic] = a[i * ia] + b[i * ib] }
}

/// C = A − B; Apple takes B first.
public func vDSP_vsub(
    _ b: UnsafePointer<Float>, _ ib: vDSP_Stride, _ a: UnsafePointer<Float>, _ ia: vDSP_Stride,
    _ c: UnsafeMutablePointer<Float>, _ ic: vDSP_Stride, _ n: vDSP_Length
) {
    for i in 0..<Int(n) { c[i * ic] = a[i * ia] - b[i * ib] }
}

/// C = A · B
public func vDSP_vmul(
    _ a: UnsafePointer<Float>, _ ia: vDSP_Stride, _ b: UnsafePointer<Float>, _ ib: vDSP_Stride,
    _ c: UnsafeMutablePointer<Float>, _ ic: vDSP_Stride, _ n: vDSP_Length
) {
    for i in 0..<Int(n) { c[i * ic] = a[i * ia] * b[i * ib] }
}

/// C = A B, of M × P and P × N numbers in row-major order.
public func vDSP_mmul(
    _ a: UnsafePointer<Float>, _ ia: vDSP_Stride, _ b: UnsafePointer<Float>, _ ib: vDSP_Stride,
    _ c: UnsafeMutablePointer<Float>, _ ic: vDSP_Stride, _ m: vDSP_Length, _ n: vDSP_Length, _ p: vDSP_Length
) {
    let (rows, columns, depth) = (Int(m), Int(n), Int(p))
    for row in 0..<rows {
        for column in 0..<columns { c[(row * columns + column) * ic] = 0 }
        for k in 0..<depth {
            let factor = a[(row * depth + k) * ia]
            for column in 0..<columns { c[(row * columns + column) * ic] += factor * b[(k * columns + column) * ib] }
        }
    }
}

/// C = A / B; Apple takes B first.
public func vDSP_vdiv(
    _ b: UnsafePointer<Float>, _ ib: vDSP_Stride, _ a: UnsafePointer<Float>, _ ia: vDSP_Stride,
    _ c: UnsafeMutablePointer<Float>, _ ic: vDSP_Stride, _ n: vDSP_Length
) {
    for i in 0..<Int(n) { c[i * ic] = a[i * ia] / b[i * ib] }
}

/// C = A · b
public func vDSP_vsmul(
    _ a: UnsafePointer<Float>, _ ia: vDSP_Stride, _ b: UnsafePointer<Float>,
    _ c: UnsafeMutablePointer<Float>, _ ic: vDSP_Stride, _ n: vDSP_Length
) {
    let factor = b.pointee
    for i in 0..<Int(n) { c[i * ic] = a[i * ia] * factor }
}

/// C = A + b, in double precision
public func vDSP_vsaddD(
    _ a: UnsafePointer<Double>, _ ia: vDSP_Stride, _ b: UnsafePointer<Double>,
    _ c: UnsafeMutablePointer<Double>, _ ic: vDSP_Stride, _ n: vDSP_Length
) {
    let summand = b.pointee
    for i in 0..<Int(n) { c[i * ic] = a[i * ia] + summand }
}

/// Single to double precision
public func vDSP_vspdp(
    _ a: UnsafePointer<Float>, _ ia: vDSP_Stride, _ c: UnsafeMutablePointer<Double>, _ ic: vDSP_Stride,
    _ n: vDSP_Length
) {
    for i in 0..<Int(n) { c[i * ic] = Double(a[i * ia]) }
}

/// c = mean of A, in double precision
public func vDSP_meanvD(
    _ a: UnsafePointer<Double>, _ ia: vDSP_Stride, _ c: UnsafeMutablePointer<Double>, _ n: vDSP_Length
) {
    var sum = 0.0
    for i in 0..<Int(n) { sum += a[i * ia] }
    c.pointee = sum / Double(n)
}

/// c = mean of the squares of A, in double precision
public func vDSP_measqvD(
    _ a: UnsafePointer<Double>, _ ia: vDSP_Stride, _ c: UnsafeMutablePointer<Double>, _ n: vDSP_Length
) {
    var sum = 0.0
    for i in 0..<Int(n) { sum += a[i * ia] * a[i * ia] }
    c.pointee = sum / Double(n)
}

/// Pairs to two vectors. Apple counts the stride of the pairs in floats: 2 is every pair.
public func vDSP_ctoz(
    _ c: UnsafePointer<DSPComplex>, _ ic: vDSP_Stride, _ z: UnsafePointer<DSPSplitComplex>, _ iz: vDSP_Stride,
    _ n: vDSP_Length
) {
    for i in 0..<Int(n) {
        let pair = c[i * ic / 2]
        z.pointee.realp[i * iz] = pair.real
        z.pointee.imagp[i * iz] = pair.imag
    }
}

/// Two vectors to pairs.
public func vDSP_ztoc(
    _ z: UnsafePointer<DSPSplitComplex>, _ iz: vDSP_Stride, _ c: UnsafeMutablePointer<DSPComplex>, _ ic: vDSP_Stride,
    _ n: vDSP_Length
) {
    for i in 0..<Int(n) {
        c[i * ic / 2] = DSPComplex(real: z.pointee.realp[i * iz], imag: z.pointee.imagp[i * iz])
    }
}
