//! The benchmark: the agent as it ships against its peer, AWS's agent, and the floor, a bare hyper answer and nginx, on
//! one machine in one run.
//!
//! The server under test has processor 0 to itself; everything else runs on processor 1. All servers take part in
//! every round, and every second round goes backwards, so that what else the machine does hits them alike. Ratios of
//! one run count, times of different machines do not.

mod exec;
mod first;
mod floor;
mod load;
mod memory;
mod neighbour;
mod peer;
mod process;
mod report;
mod sdk;
mod servers;
mod start;
mod uncached;
mod warm;

use clap::Parser;
use report::Report;
use servers::Stage;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The result of anything in the benchmark; whatever fails ends it.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures the agent against a bare hyper server, nginx and AWS's agent.
#[derive(Debug, Parser)]
struct Arguments {
    /// A smoke run of under a minute: one short round of each. Its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only the parts whose names contain this: warm, uncached, memory, start, first secret, exec, neighbour; or one of the first
    /// part's scenarios: "warm, kept", "64 KiB, kept", "new connection".
    #[arg(long)]
    only: Option<String>,
    /// The agent's program [default: this build's].
    #[arg(long, value_name = "PROGRAM")]
    agent: Option<PathBuf>,
    /// Another build of the agent, which answers in the same rounds of `warm` and its scenarios: what a change is worth is
    /// seen only side by side.
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,
    /// AWS's agent, its peer: `cargo install --locked aws_secretsmanager_agent` makes one.
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<PathBuf>,
    /// How long each server answers in a round, in milliseconds. Many short rounds tell two builds apart that a busy
    /// machine would blur.
    #[arg(long, value_name = "MS", default_value_t = 1700, value_parser = clap::value_parser!(u64).range(100..), conflicts_with = "quick")]
    run: u64,
    /// Where the figures go as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
struct Pace {
    rounds: usize,
    warm_up: Duration,
    run: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // A part of the benchmark that must be a process of its own is this program again.
    let ended = match arguments.get(1..) {
        Some([part, plan]) if part == load::PART => load::main(plan),
        Some([part, plan]) if part == floor::PART => floor::main(plan),
        Some([part, plan]) if part == sdk::PART => sdk::main(plan),
        Some([part, plan]) if part == neighbour::PART => neighbour::main(plan),
        Some([part, rest @ ..]) if part == servers::LAUNCH => servers::launch(rest),
        _ => bench(&Arguments::parse()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Outcome<()> {
    if let Err(why) = testkit::workload::Workload::supported() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let processors = process::processors();
    if processors < 2 {
        eprintln!("SKIPPED: the server and its load need a processor each");
        return Ok(());
    }
    process::pin(servers::LOAD)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(arguments, processors))
}

async fn run(arguments: &Arguments, processors: usize) -> Outcome<()> {
    let began = Instant::now();
    let pace = if arguments.quick {
        let part = Duration::from_millis(300);
        Pace {
            rounds: 1,
            warm_up: part / 3,
            run: part,
        }
    } else {
        let run = Duration::from_millis(arguments.run);
        Pace {
            rounds: arguments.rounds.max(1),
            warm_up: (run / 5).max(Duration::from_millis(50)),
            run,
        }
    };
    let wanted = |part: &str| {
        arguments
            .only
            .as_ref()
            .is_none_or(|only| part.contains(only))
    };
    let stage = Stage::set(arguments).await?;
    let mut report = Report::new(&stage.program()?, arguments.baseline.as_deref(), processors);
    if wanted("start") {
        start::measure(&stage, pace, &mut report).await?;
    }
    if wanted("first secret") {
        first::measure(&stage, pace, &mut report).await?;
    }
    if wanted("exec") {
        exec::measure(pace, &mut report).await?;
    }
    let scenario = |name: &str| wanted("warm") || wanted(name);
    if warm::names().any(scenario) {
        warm::measure(&stage, pace, scenario, &mut report).await?;
    }
    if wanted("uncached") {
        uncached::measure(&stage, pace, &mut report).await?;
    }
    if wanted("memory") {
        memory::measure(&stage, &mut report).await?;
    }
    if wanted("neighbour") {
        neighbour::measure(&stage, pace, &mut report).await?;
    }
    report.end(began.elapsed(), &arguments.json)
}
