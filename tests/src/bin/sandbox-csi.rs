//! `latchkey-csi` as the sandbox runs it: the same library, entry point and allocator as the shipped program, built
//! with the tests so that they never run an older one.

use std::alloc::System;
use std::process::ExitCode;
use zeroizing_alloc::ZeroAlloc;

#[global_allocator]
static HEAP: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    latchkey_agent::csi::cli::main()
}
