//! `latchkey-csi`, the mounter: it has no other work than CSI's, and its memory holds no token for long.

use std::alloc::System;
use std::process::ExitCode;
use zeroizing_alloc::ZeroAlloc;

/// Pods' tokens pass through buffers of libraries that nobody else wipes.
#[global_allocator]
static HEAP: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    latchkey_agent::csi::cli::main()
}
