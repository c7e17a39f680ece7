//! Runs a program on a kernel that seems not to know `SO_PEERPIDFD`, as those before Linux 6.5:
//! `without-peerpidfd PROGRAM [ARGUMENT…]`.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        return Err("usage: without-peerpidfd PROGRAM [ARGUMENT…]".into());
    };
    seccompiler::apply_filter(&filter()?)?;
    Err(Command::new(program).args(words).exec().into())
}

/// `getsockopt(_, SOL_SOCKET, SO_PEERPIDFD, …)` fails with `ENOPROTOOPT`; all else is as ever.
fn filter() -> Result<BpfProgram, Box<dyn std::error::Error>> {
    let is = |argument: u8, value: i32| {
        let value = u64::try_from(value).unwrap_or_default();
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    let rule = SeccompRule::new(vec![is(1, libc::SOL_SOCKET)?, is(2, libc::SO_PEERPIDFD)?])?;
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_getsockopt, vec![rule])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOPROTOOPT.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}
