import Foundation

/// A list that several tasks may append to.
final class Collected<Element: Sendable>: @unchecked Sendable {  // the elements are touched under the lock only
    private let lock = NSLock()
    private var elements: [Element] = []

    func append(_ element: Element) { lock.withLock { elements.append(element) } }
    var all: [Element] { lock.withLock { elements } }
}
