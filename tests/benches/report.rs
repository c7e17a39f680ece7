//! The figures: as a table for people, as JSON for programs, and against what must be reached.

use crate::Outcome;
use crate::load::Load;
use crate::peer;
use crate::servers::{ASKING, BASELINE};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// One run of the load.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) connections: usize,
    pub(crate) server: String,
    #[serde(flatten)]
    pub(crate) load: Load,
}

/// Everything measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    program: String,
    processors: usize,
    figures: Vec<Figure>,
    numbers: BTreeMap<&'static str, f64>,
    spreads: BTreeMap<&'static str, [f64; 3]>,
    notes: Vec<String>,
    goals: Vec<Goal>,
    baseline: Option<String>,
    against_baseline: BTreeMap<String, Ratio>,
}

/// A ratio of many rounds: half of them lie between the quartiles.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratio {
    median: f64,
    quartiles: [f64; 2],
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.quartiles;
        write!(f, "{:.2} [{low:.2}-{high:.2}] x", self.median)
    }
}

/// Something that must be reached.
#[derive(Debug, Serialize)]
struct Goal {
    what: &'static str,
    must: String,
    measured: String,
    reached: bool,
}

impl Report {
    pub(crate) fn new(program: &Path, baseline: Option<&Path>, processors: usize) -> Self {
        Self {
            program: program.display().to_string(),
            processors,
            figures: Vec::new(),
            numbers: BTreeMap::new(),
            spreads: BTreeMap::new(),
            notes: vec![
                "the agent attests every connection, checks it on every request, and writes its audit lines into a pipe that is read"
                    .to_owned(),
                "for load by one pod the agent's per-pod limits are raised; memory and neighbour have those that ship"
                    .to_owned(),
            ],
            goals: Vec::new(),
            baseline: baseline.map(|program| program.display().to_string()),
            against_baseline: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub(crate) fn number(&mut self, name: &'static str, number: f64) {
        self.numbers.insert(name, number);
    }

    /// Keeps median, least and most.
    pub(crate) fn spread(&mut self, name: &'static str, numbers: Vec<f64>) {
        self.spreads.insert(name, spread(numbers));
    }

    pub(crate) fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// Prints the table and writes the JSON.
    pub(crate) fn end(mut self, took: Duration, json: &Path) -> Outcome<()> {
        self.judge();
        self.number("took_seconds", took.as_secs_f64());
        let mut out = std::io::stdout().lock();
        let head = [
            "what",
            "conns",
            "server",
            "requests/s [min-max]",
            "p50 us",
            "p99",
            "p99.9",
            "CPU us/req (user/sys)",
        ];
        writeln!(
            out,
            "\n{:<15} {:>5} {:<9} {:>26} {:>8} {:>8} {:>8} {:>22} {:>5} {:>6} {:>6}",
            head[0],
            head[1],
            head[2],
            head[3],
            head[4],
            head[5],
            head[6],
            head[7],
            "CPU%",
            "other%",
            "failed"
        )?;
        for (what, connections, server) in self.rows() {
            let of = |pick: fn(&Load) -> f64| self.spread_of(&what, connections, &server, pick);
            let (rate, cpu) = (of(|l| l.per_second), of(|l| l.cpu.total()));
            writeln!(
                out,
                "{what:<15} {connections:>5} {server:<9} {:>26} {:>8.1} {:>8.1} {:>8.1} {:>22} {:>5.0} {:>6.0} {:>6.0}",
                format!("{:.0} [{:.0}-{:.0}]", rate[0], rate[1], rate[2]),
                of(|l| l.latency.p50)[0],
                of(|l| l.latency.p99)[0],
                of(|l| l.latency.p999)[0],
                format!(
                    "{:.2} ({:.2}/{:.2})",
                    cpu[0],
                    of(|l| l.cpu.user)[0],
                    of(|l| l.cpu.system)[0]
                ),
                of(|l| l.server_share * 100.0)[0],
                of(|l| l.foreign_share * 100.0)[2],
                of(|l| crate::load::exact(l.failed))[2],
            )?;
        }
        for (row, ratio) in &self.against_baseline {
            writeln!(out, "{row}: {ratio} the baseline's CPU")?;
        }
        writeln!(out)?;
        for (name, number) in &self.numbers {
            writeln!(out, "{name:<26} {number:.1}")?;
        }
        for (name, [median, least, most]) in &self.spreads {
            writeln!(out, "{name:<26} {median:.1} [{least:.1}-{most:.1}]")?;
        }
        writeln!(out)?;
        for goal in &self.goals {
            let mark = if goal.reached { "reached" } else { "MISSED" };
            writeln!(
                out,
                "{mark:<8} {:<44} must: {:<34} measured: {}",
                goal.what, goal.must, goal.measured
            )?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        if let Some(directory) = json.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(json, serde_json::to_vec_pretty(&self)?)?;
        writeln!(out, "JSON: {}", json.display())?;
        Ok(())
    }

    /// What was measured, in the order in which it came first.
    fn rows(&self) -> Vec<(String, usize, String)> {
        let mut rows = Vec::new();
        for figure in &self.figures {
            let row = (
                figure.what.clone(),
                figure.connections,
                figure.server.clone(),
            );
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows.sort_by_key(|(what, connections, _)| {
            let first = self.figures.iter().position(|figure| figure.what == *what);
            (first, *connections)
        });
        rows
    }

    /// One figure of a row, round by round.
    fn rounds(
        &self,
        what: &str,
        connections: usize,
        server: &str,
        pick: fn(&Load) -> f64,
    ) -> Vec<f64> {
        let of_row = |figure: &&Figure| {
            figure.what == what && figure.connections == connections && figure.server == server
        };
        self.figures
            .iter()
            .filter(of_row)
            .map(|figure| pick(&figure.load))
            .collect()
    }

    /// Median, least and most over the rounds.
    fn spread_of(
        &self,
        what: &str,
        connections: usize,
        server: &str,
        pick: fn(&Load) -> f64,
    ) -> [f64; 3] {
        spread(self.rounds(what, connections, server, pick))
    }

    /// How much more processor time a request takes of one server than of another.
    fn ratio(&self, what: &str, connections: usize, server: &str, other: &str) -> Ratio {
        self.ratio_of(what, connections, server, other, |load| load.cpu.total())
    }

    /// How much more of something one server has than another, round by round: in one round the machine was likeliest as
    /// busy for both.
    fn ratio_of(
        &self,
        what: &str,
        connections: usize,
        server: &str,
        other: &str,
        pick: fn(&Load) -> f64,
    ) -> Ratio {
        let rounds = |server| self.rounds(what, connections, server, pick);
        let ratios = rounds(server).into_iter().zip(rounds(other));
        let mut ratios: Vec<_> = ratios.map(|(one, other)| one / other).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |place: usize| ratios.get(place).copied().unwrap_or(f64::NAN);
        let quartiles = [at(ratios.len() / 4), at(ratios.len() * 3 / 4)];
        Ratio {
            median: spread(ratios)[0],
            quartiles,
        }
    }

    fn judge(&mut self) {
        for (what, connections, server) in self.rows() {
            if server == BASELINE {
                let ratio = self.ratio(&what, connections, "agent", BASELINE);
                self.against_baseline
                    .insert(format!("{what}, {connections}"), ratio);
            }
        }
        let cpu = |what: &str, connections, server: &str| {
            self.spread_of(what, connections, server, |load| load.cpu.total())[0]
        };
        let p50 =
            |server: &str| self.spread_of("uncached, kept", 1, server, |load| load.latency.p50)[0];
        let number = |name: &str| self.numbers.get(name).copied().unwrap_or(f64::NAN);
        let median = |name: &str| self.spreads.get(name).map_or(f64::NAN, |spread| spread[0]);
        let mebi = 1024.0 * 1024.0;
        let (warm, floor) = (
            cpu("warm, kept", 64, "agent"),
            cpu("warm, kept", 64, "hyper"),
        );
        let warm_ratio = self.ratio("warm, kept", 64, "agent", "hyper");
        let large_floor = cpu("64 KiB, kept", 16, "hyper");
        let large_ratio = self.ratio("64 KiB, kept", 16, "agent", "hyper");
        let bare = cpu("uncached, kept", 16, "bare SDK");
        let vault_ratio = self.ratio("uncached, kept", 16, "agent", "bare SDK");
        let new = cpu("new connection", 16, "agent");
        let new_floor = cpu("new connection", 16, "hyper");
        let asking = cpu("new connection", 16, ASKING);
        let new_ratio = self.ratio("new connection", 16, "agent", ASKING);
        let peers = |pick| self.ratio_of("warm, kept", 64, "agent", peer::NAME, pick);
        let peers_cpu = peers(|load| load.cpu.total());
        let peers_rate = peers(|load| load.per_second);
        let peers_p99 = peers(|load| load.latency.p99);
        let peers_new = self.ratio("new connection", 16, "agent", peer::NAME);
        let (quiet, noisy) = (median("polite_quiet_p99_us"), median("polite_noisy_p99_us"));
        let elsewhere = median("polite_elsewhere_p99_us");
        let allowed = (2.0 * quiet).max(quiet + 1000.0);
        let mut goals = Vec::new();
        let mut goal = |what, must: String, measured: f64, limit: f64, text: String| {
            // A part that was not asked for has no figure.
            if measured.is_finite() && limit.is_finite() {
                goals.push(Goal {
                    what,
                    must,
                    measured: text,
                    reached: measured <= limit,
                });
            }
        };
        let program = median("secrets_to_program_ms");
        goal(
            "latchkey exec: from the last secret to the program",
            "<= 10 ms".into(),
            program,
            10.0,
            format!("{program:.1} ms"),
        );
        let first = number("first_secret_p99_ms");
        goal(
            "a new pod's first secret, p99",
            "<= 50 ms over the calls it takes".into(),
            first,
            50.0,
            format!("{first:.1} ms, the calls included"),
        );
        goal(
            "warm read, CPU, 64 connections",
            "<= 6 us".into(),
            warm,
            6.0,
            format!("{warm:.2} us"),
        );
        goal(
            "the same, against bare hyper",
            "<= 2 x".into(),
            warm_ratio.median,
            2.0,
            format!("{warm_ratio} {floor:.2} us"),
        );
        // Ours, from the goals in microseconds and what the peer took where they were set: 7.3 us, and 42 us for a new
        // connection.
        goal(
            "the same, CPU against AWS's agent",
            "<= 0.82 x".into(),
            peers_cpu.median,
            6.0 / 7.3,
            format!("{peers_cpu}"),
        );
        goal(
            "the same, requests/s against AWS's agent",
            ">= 1.2 x".into(),
            -peers_rate.median,
            -1.2,
            format!("{peers_rate}"),
        );
        goal(
            "the same, p99 against AWS's agent",
            "<= 0.8 x".into(),
            peers_p99.median,
            0.8,
            format!("{peers_p99}"),
        );
        goal(
            "64 KiB, CPU, against bare hyper",
            "<= 1.3 x".into(),
            large_ratio.median,
            1.3,
            format!("{large_ratio} {large_floor:.1} us"),
        );
        goal(
            "new connection, CPU, 16 clients",
            "<= 30 us".into(),
            new,
            30.0,
            format!("{new:.1} us; bare hyper {new_floor:.1} us"),
        );
        // Ours, and near the other's scale: there a hyper that read the cgroup took 23 us.
        goal(
            "the same, against hyper that asks who it is",
            "<= 1.3 x".into(),
            new_ratio.median,
            1.3,
            format!("{new_ratio} {asking:.1} us"),
        );
        goal(
            "the same, against AWS's agent",
            "<= 0.71 x".into(),
            peers_new.median,
            30.0 / 42.0,
            format!("{peers_new}"),
        );
        goal(
            "uncached read, CPU over the bare SDK",
            "<= 20 %".into(),
            vault_ratio.median,
            1.2,
            format!(
                "{:+.0} % of {bare:.0} us",
                (vault_ratio.median - 1.0) * 100.0
            ),
        );
        goal(
            "uncached read, latency over it, median",
            "<= 100 us".into(),
            p50("agent") - p50("bare SDK"),
            100.0,
            format!(
                "{:.0} us over {:.0} us",
                p50("agent") - p50("bare SDK"),
                p50("bare SDK")
            ),
        );
        goal(
            "64 miss one secret at once: calls",
            "1".into(),
            number("at_once_reads"),
            1.0,
            format!("{:.0}", number("at_once_reads")),
        );
        goal(
            "memory, idle",
            "<= 20 MB".into(),
            number("rss_start_bytes"),
            20.0 * mebi,
            format!("{:.1} MiB", number("rss_start_bytes") / mebi),
        );
        goal(
            "memory, 110 pods and 1,000 connections",
            "<= 40 MB".into(),
            number("rss_full_bytes"),
            40.0 * mebi,
            format!("{:.1} MiB", number("rss_full_bytes") / mebi),
        );
        goal(
            "start to socket",
            "<= 20 ms".into(),
            median("start_to_socket_ms"),
            20.0,
            format!("{:.1} ms", median("start_to_socket_ms")),
        );
        goal(
            "start to ready",
            "<= 100 ms".into(),
            median("start_to_ready_ms"),
            100.0,
            format!("{:.1} ms", median("start_to_ready_ms")),
        );
        goal(
            "noisy neighbour: polite p99",
            format!("<= {allowed:.0} us (quiet {quiet:.0} us)"),
            noisy,
            allowed,
            format!("{noisy:.0} us; meanwhile {elsewhere:.0} us from an agent that nobody floods"),
        );
        self.goals = goals;
    }
}

fn spread(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    let at = |place: usize| numbers.get(place).copied().unwrap_or(f64::NAN);
    let last = numbers.len().saturating_sub(1);
    [
        f64::midpoint(at(last / 2), at(last.div_ceil(2))),
        at(0),
        at(last),
    ]
}
