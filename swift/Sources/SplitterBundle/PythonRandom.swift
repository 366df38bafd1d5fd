/// `random.Random(seed).randint` of Python: MT19937, seeded by an array, so that shifts are those of `splitter separate`.
struct PythonRandom {
    private var state = [UInt32](repeating: 0, count: 624)
    private var index = 624

    init(seed: UInt32) {
        state[0] = 19_650_218
        for i in 1..<624 {
            state[i] = 1_812_433_253 &* (state[i - 1] ^ state[i - 1] >> 30) &+ UInt32(i)
        }
        var i = 1
        for _ in 0..<624 {  // the key is the seed alone
            state[i] = (state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) &* 1_664_525) &+ seed
            advance(&i)
        }
        for _ in 0..<623 {
            state[i] = (state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) &* 1_566_083_941) &- UInt32(i)
            advance(&i)
        }
        state[0] = 0x8000_0000
    }

    /// A number from 0 to `most`.
    mutating func integer(upTo most: Int) -> Int {
        let bits = UInt32(Int.bitWidth - (most + 1).leadingZeroBitCount)
        while true {
            let drawn = Int(next() >> (32 - bits))
            if drawn <= most { return drawn }
        }
    }

    private mutating func advance(_ i: inout Int) {
        i += 1
        if i == 624 {
            state[0] = state[623]
            i = 1
        }
    }

    private mutating func next() -> UInt32 {
        if index == 624 {
            for k in 0..<624 {
                let mixed = state[k] & 0x8000_0000 | state[(k + 1) % 624] & 0x7fff_ffff
                state[k] = state[(k + 397) % 624] ^ mixed >> 1 ^ (mixed & 1 == 0 ? 0 : 0x9908_b0df)
            }
            index = 0
        }
        var y = state[index]
        index += 1
        y ^= y >> 11
        y ^= y << 7 & 0x9d2c_5680
        y ^= y << 15 & 0xefc6_0000
        return y ^ y >> 18
    }
}
