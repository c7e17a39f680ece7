//! Runs a program on a machine that seems to lack something: `without WHAT PROGRAM [ARGUMENT…]`.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Not in `libc` yet for every architecture (include/uapi/asm-generic/socket.h).
const SO_PASSRIGHTS: i32 = 83;

/// A system call that fails, with which arguments, and how.
struct Lack {
    call: i64,
    /// Positions of arguments and their values; empty: whatever they are.
    if_all: Vec<(u8, i32)>,
    error: i32,
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut words = std::env::args_os().skip(1);
    let (what, program) = (words.next(), words.next());
    let lack = what.as_ref().and_then(|what| Lack::of(what.to_str()?));
    let (Some(lack), Some(program)) = (lack, program) else {
        return Err(
            "usage: without clone3|ipv6|may_openat2|openat2|passrights|peerpidfd|pidfd_open PROGRAM [ARGUMENT…]"
                .into(),
        );
    };
    seccompiler::apply_filter(&lack.filter()?)?;
    Err(Command::new(program).args(words).exec().into())
}

impl Lack {
    fn of(what: &str) -> Option<Self> {
        Some(match what {
            // An old seccomp profile. The C library does without only where it is ENOSYS.
            "clone3" => Self {
                call: libc::SYS_clone3,
                if_all: Vec::new(),
                error: libc::EPERM,
            },
            // A node that was started with ipv6.disable=1.
            "ipv6" => Self {
                call: libc::SYS_socket,
                if_all: vec![(0, libc::AF_INET6)],
                error: libc::EAFNOSUPPORT,
            },
            // An old seccomp profile.
            "may_openat2" => Self {
                call: libc::SYS_openat2,
                if_all: Vec::new(),
                error: libc::EPERM,
            },
            // A kernel before Linux 5.6.
            "openat2" => Self {
                call: libc::SYS_openat2,
                if_all: Vec::new(),
                error: libc::ENOSYS,
            },
            // A kernel before Linux 6.16.
            "passrights" => Self {
                call: libc::SYS_setsockopt,
                if_all: vec![(1, libc::SOL_SOCKET), (2, SO_PASSRIGHTS)],
                error: libc::ENOPROTOOPT,
            },
            // A kernel before Linux 6.5.
            "peerpidfd" => Self {
                call: libc::SYS_getsockopt,
                if_all: vec![(1, libc::SOL_SOCKET), (2, libc::SO_PEERPIDFD)],
                error: libc::ENOPROTOOPT,
            },
            // A kernel before Linux 5.3, or an old seccomp profile.
            "pidfd_open" => Self {
                call: libc::SYS_pidfd_open,
                if_all: Vec::new(),
                error: libc::EPERM,
            },
            _ => return None,
        })
    }

    fn filter(&self) -> Result<BpfProgram, Box<dyn std::error::Error>> {
        let conditions = self.if_all.iter().map(|(argument, value)| {
            let value = u64::try_from(*value).unwrap_or_default();
            let (length, is) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            SeccompCondition::new(*argument, length, is, value)
        });
        let conditions: Vec<_> = conditions.collect::<Result<_, _>>()?;
        let rules = if conditions.is_empty() {
            Vec::new()
        } else {
            vec![SeccompRule::new(conditions)?]
        };
        let filter = SeccompFilter::new(
            BTreeMap::from([(self.call, rules)]),
            SeccompAction::Allow,
            SeccompAction::Errno(self.error.unsigned_abs()),
            std::env::consts::ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    }
}
