// What the processor has and the operating system lets programs use.
#pragma once

namespace diffq_fast {

struct CpuFeatures {
    bool avx2 = false;    // with FMA and F16C
    bool avx512 = false;  // F, BW, DQ and VL
    bool neon = false;
};

const CpuFeatures& cpu_features();

}  // namespace diffq_fast
