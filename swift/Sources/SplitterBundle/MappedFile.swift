import Foundation

/// A file's bytes, mapped and not copied. The address is that of a page.
///
/// Whoever shortens the file meanwhile ends the process: bundles are not written while they are read.
public final class MappedFile: @unchecked Sendable {  // the bytes are never written
    public let bytes: UnsafeRawBufferPointer

    /// - Throws: `HostError.bundle` if it is no regular file, or cannot be read.
    public init(_ path: URL) throws(HostError) {
        func fault(_ received: String) -> HostError {
            .bundle(
                invariant: "\(path.lastPathComponent) must be a readable file", received: received,
                fix: "Build the bundle again.")
        }
        let descriptor = open(path.path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
        guard descriptor >= 0 else { throw fault(String(cString: strerror(errno))) }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw fault("something that is no file")
        }
        guard status.st_size > 0 else {
            bytes = UnsafeRawBufferPointer(start: nil, count: 0)
            return
        }
        let address = mmap(nil, Int(status.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0)
        guard let address, address != MAP_FAILED else { throw fault(String(cString: strerror(errno))) }
        bytes = UnsafeRawBufferPointer(start: address, count: Int(status.st_size))
    }

    deinit {
        if let address = bytes.baseAddress {
            munmap(UnsafeMutableRawPointer(mutating: address), bytes.count)
        }
    }
}
