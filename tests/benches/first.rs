//! What a new pod waits for its first secret: the agent takes one token, makes one exchange and one read for it.

use crate::report::Report;
use crate::servers::{SMALL, Stage};
use crate::{Outcome, Pace, load};
use std::time::Instant;
use testkit::aws::Operation;

/// How many new pods there are in a round.
const PODS: usize = 50;

pub(crate) async fn measure(stage: &Stage, pace: Pace, report: &mut Report) -> Outcome<()> {
    let agent = stage.agent(stage.settings("first")?, true).await?;
    let (kube, aws) = (&stage.sandbox.kube, &stage.sandbox.aws);
    let exchanges = || aws.count_of(Operation::AssumeRoleWithWebIdentity);
    let before = (kube.tokens().len(), exchanges());
    let mut took = Vec::new();
    for number in 0..PODS * pace.rounds {
        // Its object first and then its process, as a kubelet has it; the process asks as soon as it runs.
        let pod = stage
            .pod(&format!("first-{number}"), agent.socket())
            .await?;
        let began = Instant::now();
        let answer = pod.get(SMALL).await?;
        took.push(began.elapsed().as_secs_f64() * 1000.0);
        if answer.status != 200 {
            return Err(format!("a new pod was answered {}", answer.status).into());
        }
    }
    let each = |count: usize| load::exact(count) / load::exact(took.len());
    report.number("first_secret_tokens", each(kube.tokens().len() - before.0));
    report.number("first_secret_exchanges", each(exchanges() - before.1));
    took.sort_by(f64::total_cmp);
    let p99 = took[(took.len() * 99).div_ceil(100) - 1];
    report.number("first_secret_p99_ms", p99);
    report.spread("first_secret_ms", took);
    Ok(())
}
