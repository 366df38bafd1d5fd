// The type in which activations and the matrices of linear layers lie in memory: float, or half when the file is
// compiled with -DSTORAGE=half. A value is widened as it is loaded and rounded once as it is stored; everything
// between is float. Norms, biases, layer scales and position tables are float in either case.
#pragma once

#include <metal_stdlib>
using namespace metal;

#ifndef STORAGE
#define STORAGE float
#endif

typedef STORAGE storage;
