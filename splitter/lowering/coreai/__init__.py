"""Core AI, Apple's successor to Core ML (macOS and iOS 27 and later): the target, and Apple's runtime in a process."""

KIND = "aimodel"  # the kind of artifact
EXTRA, MODULES = "coreai", ("coreai", "coreai_torch")
FUNCTION = "main"  # the one of each file
