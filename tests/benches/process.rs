//! What the kernel says about processes and processors.

use crate::Outcome;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Duration;

/// Processor time, in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Cpu {
    /// What a process, threads that have ended included, has used so far: in all by its own clock, to the nanosecond
    /// (clock_getcpuclockid(3)), of which the user's part is counted in ticks (proc_pid_stat(5), field 14).
    pub(crate) fn of(pid: u32) -> Outcome<Self> {
        let number = Pid::from_raw(i32::try_from(pid)?);
        let used = clock_gettime(clock_getcpuclockid(number)?)?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest);
        let user = after_name.and_then(|rest| rest.split(' ').nth(11));
        let user = user.ok_or("/proc/PID/stat is too short")?.parse::<f64>()?;
        let user = user * 1e6 / ticks_per_second();
        Ok(Self {
            user,
            system: Duration::from(used).as_secs_f64() * 1e6 - user,
        })
    }

    /// What all processors together were busy with so far (proc_stat(5)), time stolen by the host included.
    pub(crate) fn of_machine() -> Outcome<f64> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<f64> = line
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
            return Err("/proc/stat is too short".into());
        };
        Ok((user + nice + system + irq + softirq + steal) * 1e6 / ticks_per_second())
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
        }
    }

    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

/// The number of processors that this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Keeps this process, and what it starts from now on, on one processor.
pub(crate) fn pin(processor: usize) -> Outcome<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Lets this process use all processors.
pub(crate) fn unpin() -> Outcome<()> {
    let mut set = CpuSet::new();
    // Those beyond the machine's are ignored.
    for processor in 0..CpuSet::count().min(64) {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Waits, but not for long, until others leave the machine alone.
pub(crate) async fn until_quiet() -> Outcome<()> {
    const LOOK: Duration = Duration::from_millis(150);
    for _ in 0..8 {
        let before = Cpu::of_machine()?;
        tokio::time::sleep(LOOK).await;
        if Cpu::of_machine()? - before < LOOK.as_secs_f64() * 1e6 / 4.0 {
            break;
        }
    }
    Ok(())
}

fn ticks_per_second() -> f64 {
    let ticks = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u32::try_from(ticks).ok());
    ticks.map_or(100.0, f64::from)
}
