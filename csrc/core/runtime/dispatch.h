// Chooses the instruction set once; everything else asks kernels().
#pragma once

#include <string>
#include <vector>

#include "core/isa/kernels.h"

namespace diffq_fast {

// The kernels in use: the best that this machine runs, until another is chosen.
const Kernels& kernels();

// All that this machine runs, the scalar ones first and the best ones last.
const std::vector<const Kernels*>& supported_kernels();

// Uses the named ones from now on; false, and no change, where this machine does not run them. Not to be
// called while the core computes.
bool use_kernels(const std::string& name);

}  // namespace diffq_fast
