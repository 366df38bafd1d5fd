// swift-tools-version: 6.0
// The host of splitter's bundles on Apple devices. On Linux, where Apple's frameworks do not exist, the modules under
// Standins/ take their places, so that the same sources are compiled and run there.
import PackageDescription

#if os(Linux)
    let standins: [Target] = [
        .target(name: "StandinServer", path: "Standins/StandinServer"),
        .target(name: "Accelerate", path: "Standins/Accelerate"),
        .target(name: "CoreML", dependencies: ["StandinServer"], path: "Standins/CoreML"),
        .target(name: "Metal", dependencies: ["StandinServer"], path: "Standins/Metal"),
    ]
    let frameworks: [Target.Dependency] = ["Accelerate", "CoreML", "Metal"]
#else
    let standins: [Target] = []
    let frameworks: [Target.Dependency] = []
#endif

let kernels = [
    "attention.metal", "elementary.h", "group_norm.metal", "layer_norm.metal", "linear.metal", "reduction.h",
    "residual.metal", "storage.h", "tokens.metal",
]

let package = Package(
    name: "splitter-host",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "SplitterHost", targets: ["SplitterHost"]),
        .executable(name: "splitter-host", targets: ["splitter-host"]),
    ],
    targets: [
        .target(name: "SplitterBundle"),
        .target(
            name: "SplitterHost",
            dependencies: ["SplitterBundle"] + frameworks,
            resources: kernels.map { .embedInCode("Kernels/\($0)") }
        ),
        .executableTarget(name: "splitter-host", dependencies: ["SplitterHost", "SplitterBundle"]),
        .testTarget(name: "SplitterHostTests", dependencies: ["SplitterHost", "SplitterBundle"]),
    ] + standins
)
