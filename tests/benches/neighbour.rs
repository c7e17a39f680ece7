//! The noisy neighbour: one pod floods the agent with half a processor, another asks politely, with the limits as
//! they ship and nobody pinned. The polite pod also asks an agent that nobody floods, meanwhile: the control.

use crate::load::{self, Latency, Plan, Use, until_placed};
use crate::report::Report;
use crate::servers::{SMALL, Stage};
use crate::{Outcome, Pace, process};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use testkit::agent::AgentProcess;

/// The argument that makes this program the polite pod.
pub(crate) const PART: &str = "--part-polite";

/// The time between two polite requests.
const PACE: Duration = Duration::from_millis(10);

/// After so many of them, one on a new connection.
const NEW_EVERY: usize = 100;

/// The time over which the kernel counts what the flooder uses, in microseconds, and what it may use in it.
const PERIOD: (u32, u32) = (100_000, 50_000);

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Polite {
    socket: PathBuf,
    path: String,
    run: Duration,
}

#[derive(Debug, Deserialize, Serialize)]
struct Answered {
    failed: usize,
    kept: Latency,
    new: Latency,
}

/// A cgroup that may use half a processor.
struct Half {
    directory: PathBuf,
    entrance: PathBuf,
}

pub(crate) async fn measure(stage: &Stage, pace: Pace, report: &mut Report) -> Outcome<()> {
    process::unpin()?;
    let start = async |name| {
        let settings = stage.settings(name)?.set("cache.ttl", "5m");
        stage.agent(settings, false).await
    };
    // The second one tells what the flood costs by way of the agent from what it costs by way of the machine.
    let (agent, spared) = (start("neighbour").await?, start("spared").await?);
    let (polite, flooder) = (
        stage.pod("polite", agent.socket()).await?,
        stage.pod("flooder", agent.socket()).await?,
    );
    let entrances = (
        polite.entrance().ok_or("no cgroup")?,
        flooder.entrance().ok_or("no cgroup")?,
    );
    let half = match Half::of(&entrances.1) {
        Ok(half) => half,
        Err(error) => {
            report.note(&format!(
                "SKIPPED: no cgroup of half a processor can be had: {error}"
            ));
            return Ok(());
        }
    };
    let plan = |asked: &AgentProcess| Polite {
        socket: asked.socket().to_owned(),
        path: SMALL.to_owned(),
        run: pace.run * 3,
    };
    let (plan, elsewhere) = (plan(&agent), plan(&spared));
    let mut figures: [Vec<f64>; 6] = Default::default();
    let (mut failed, mut flooded) = (0, 0.0);
    for _ in 0..pace.rounds {
        process::until_quiet().await?;
        let quiet = asked(&plan, &entrances.0).await?;
        let flood = flood(
            &agent,
            &entrances.1,
            &half,
            plan.run * 2 + Duration::from_millis(900),
        )?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let noisy = asked(&plan, &entrances.0).await?;
        let control = asked(&elsewhere, &entrances.0).await?;
        let output = flood.wait_with_output().await?;
        let load: load::Load = serde_json::from_slice(&output.stdout)?;
        flooded += load::exact(load.answered + load.failed);
        let all = [quiet, noisy, control];
        failed += all.iter().map(|answered| answered.failed).sum::<usize>();
        let p99 = all
            .iter()
            .flat_map(|answered| [answered.kept.p99, answered.new.p99]);
        for (figures, p99) in figures.iter_mut().zip(p99) {
            figures.push(p99);
        }
    }
    process::pin(crate::servers::LOAD)?;
    let names = [
        "polite_quiet_p99_us",
        "polite_new_quiet_p99_us",
        "polite_noisy_p99_us",
        "polite_new_noisy_p99_us",
        "polite_elsewhere_p99_us",
        "polite_new_elsewhere_p99_us",
    ];
    for (name, figures) in names.into_iter().zip(figures) {
        report.spread(name, figures);
    }
    report.number("polite_failed", load::exact(failed));
    report.number("flooder_requests", flooded);
    Ok(())
}

/// Floods on kept connections and by new ones.
fn flood(
    agent: &AgentProcess,
    entrance: &Path,
    half: &Half,
    run: Duration,
) -> Outcome<tokio::process::Child> {
    let plan = Plan {
        address: agent.socket().into(),
        path: SMALL.to_owned(),
        mode: Use::Mixed,
        connections: 60,
        warm_up: Duration::ZERO,
        run,
        server: agent.pid(),
    };
    let child = load::spawn(load::PART, &plan, Some(entrance))?;
    fs::write(
        &half.entrance,
        child.id().ok_or("the flood has ended")?.to_string(),
    )?;
    Ok(child)
}

async fn asked(plan: &Polite, entrance: &Path) -> Outcome<Answered> {
    let output = load::spawn(PART, plan, Some(entrance))?
        .wait_with_output()
        .await?;
    if !output.status.success() {
        return Err(format!(
            "the polite pod failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

pub(crate) fn main(plan: &str) -> Outcome<()> {
    let plan: Polite = serde_json::from_str(plan)?;
    until_placed()?;
    let mut kept = UnixStream::connect(&plan.socket)?;
    ask(&mut kept, &plan.path)?;
    let (mut times, mut new_times, mut failed) = (Vec::new(), Vec::new(), 0);
    let began = Instant::now();
    for number in 1.. {
        // When it is due, not when it could be sent: a wait behind a late answer counts too.
        let due = began + PACE * number;
        if due > began + plan.run {
            break;
        }
        sleep(due.saturating_duration_since(Instant::now()));
        let ok = ask(&mut kept, &plan.path).unwrap_or(false);
        times.push(nanoseconds(due));
        failed += usize::from(!ok);
        if !ok {
            kept = UnixStream::connect(&plan.socket)?;
        }
        if usize::try_from(number)?.is_multiple_of(NEW_EVERY) {
            let since = Instant::now();
            let ok =
                UnixStream::connect(&plan.socket).and_then(|mut new| ask(&mut new, &plan.path));
            new_times.push(nanoseconds(since));
            failed += usize::from(!ok.unwrap_or(false));
        }
    }
    let answered = Answered {
        failed,
        kept: Latency::of(times),
        new: Latency::of(new_times),
    };
    serde_json::to_writer(std::io::stdout(), &answered)?;
    Ok(())
}

fn ask(stream: &mut UnixStream, path: &str) -> std::io::Result<bool> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut ok) = (String::new(), 0, None);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        ok.get_or_insert_with(|| line.starts_with("HTTP/1.1 200"));
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line == "\r\n" {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    Ok(ok.unwrap_or(false))
}

fn nanoseconds(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

impl Half {
    /// The limit beside, or on, the cgroup with that entrance: by the v1 hierarchy where there is one.
    fn of(entrance: &Path) -> Outcome<Self> {
        let (period, quota) = PERIOD;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let v1 = mounts.lines().find_map(|line| {
            let (head, tail) = line.split_once(" - cgroup ")?;
            let is_cpu = tail
                .split(' ')
                .nth(1)?
                .split(',')
                .any(|option| option == "cpu");
            is_cpu.then(|| PathBuf::from(head.split(' ').nth(4).unwrap_or_default()))
        });
        if let Some(mount) = v1 {
            let directory = mount.join(format!("latchkey-bench-{}", std::process::id()));
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("cpu.cfs_period_us"), period.to_string())?;
            fs::write(directory.join("cpu.cfs_quota_us"), quota.to_string())?;
            return Ok(Self {
                entrance: directory.join("cgroup.procs"),
                directory,
            });
        }
        let directory = entrance.parent().ok_or("no cgroup")?;
        let mut above: Vec<&Path> = directory.ancestors().skip(1).collect();
        above.reverse();
        for path in above {
            let switch = path.join("cgroup.subtree_control");
            if switch.exists() {
                fs::write(switch, "+cpu")?;
            }
        }
        fs::write(directory.join("cpu.max"), format!("{quota} {period}"))?;
        Ok(Self {
            entrance: entrance.to_owned(),
            directory: PathBuf::new(),
        })
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if !self.directory.as_os_str().is_empty() {
            let _still_used = fs::remove_dir(&self.directory);
        }
    }
}
