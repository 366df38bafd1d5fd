import XCTest

@testable import SplitterBundle

final class TensorTests: XCTestCase {
    private let tensor = Tensor(shape: [2, 3], values: [0, 1, 2, 3, 4, 5])

    func testTransposed() {
        XCTAssertEqual(tensor.transposed([1, 0]), Tensor(shape: [3, 2], values: [0, 3, 1, 4, 2, 5]))
        let cube = Tensor(shape: [2, 1, 2], values: [0, 1, 2, 3])
        XCTAssertEqual(cube.transposed([2, 1, 0]), Tensor(shape: [2, 1, 2], values: [0, 2, 1, 3]))
    }

    func testSliced() {
        XCTAssertEqual(tensor.sliced(axis: 1, 1..<3), Tensor(shape: [2, 2], values: [1, 2, 4, 5]))
        XCTAssertEqual(tensor.sliced(axis: 0, 1..<2), Tensor(shape: [1, 3], values: [3, 4, 5]))
    }

    func testPaddedWithTheMirrorImageOrZeros() {
        let row = Tensor(shape: [1, 4], values: [1, 2, 3, 4])
        XCTAssertEqual(
            row.padded(before: [0, 2], after: [0, 3], reflected: true).values, [3, 2, 1, 2, 3, 4, 3, 2, 1])
        XCTAssertEqual(
            tensor.padded(before: [1, 0], after: [0, 1], reflected: false).values, [0, 0, 0, 0, 0, 1, 2, 0, 3, 4, 5, 0])
    }

    func testExpanded() {
        XCTAssertEqual(broadcast([2, 1], [3]), [2, 3])
        XCTAssertNil(broadcast([2], [3]))
        XCTAssertEqual(Tensor(shape: [2, 1], values: [1, 2]).expanded(to: [2, 3]).values, [1, 1, 1, 2, 2, 2])
    }

    func testDigestsAreThoseOfTheStandard() {
        func digest(_ text: String) -> String { Array(text.utf8).withUnsafeBytes { SHA256.hexadecimal(of: $0) } }
        XCTAssertEqual(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        XCTAssertEqual(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        XCTAssertEqual(
            digest(String(repeating: "a", count: 119)),
            "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb")
    }

    func testDecibels() {
        XCTAssertEqual(try XCTUnwrap(Parity(reference: [1, 0], computed: [1, 0.1]).decibels), 20, accuracy: 1e-6)
        XCTAssertNil(Parity(reference: [0], computed: [1]).decibels)  // silence is no measure
        XCTAssertEqual(Parity(reference: [0], computed: [0]).decibels, .infinity)
    }
}
