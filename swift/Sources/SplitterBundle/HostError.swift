/// What goes wrong in the host: which rule was broken, what was found, and what to do.
public enum HostError: Error, Equatable, Sendable {
    /// A bundle that is not what a build wrote.
    case bundle(invariant: String, received: String, fix: String)
    /// A tensor that breaks its contract where one segment hands it to the next.
    case boundary(invariant: String, received: String, fix: String)
    /// A host specification that cannot be executed.
    case specification(invariant: String, received: String, fix: String)
    /// A segment that its framework cannot load or run.
    case segment(invariant: String, received: String, fix: String)
    /// A sound file that cannot be read or written.
    case audio(invariant: String, received: String, fix: String)
    /// Arguments that the caller got wrong.
    case usage(invariant: String, received: String, fix: String)

    /// The rule, what was received, and the fix.
    public var parts: (invariant: String, received: String, fix: String) {
        switch self {
        case .bundle(let invariant, let received, let fix), .boundary(let invariant, let received, let fix),
            .specification(let invariant, let received, let fix), .segment(let invariant, let received, let fix),
            .audio(let invariant, let received, let fix), .usage(let invariant, let received, let fix):
            (invariant, received, fix)
        }
    }
}

extension HostError: CustomStringConvertible {
    public var description: String {
        "\(parts.invariant); received \(parts.received). \(parts.fix)"
    }
}
