// What a binary can say of its own making.
#pragma once

#ifndef SAMPLERS_BUILD_TORCH
#define SAMPLERS_BUILD_TORCH "unknown"
#endif
