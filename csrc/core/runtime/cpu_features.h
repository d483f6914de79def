// What the processor has and the operating system lets programs use.
#pragma once

namespace diffq_fast {

// Whether all of the features can be used: names as compilers have them, with commas between. False for a
// name that is not known here.
bool cpu_has(const char* features);

}  // namespace diffq_fast
