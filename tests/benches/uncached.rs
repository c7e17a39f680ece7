//! Reads that go to the vault: the agent's against a bare call of the cloud's SDK, and many at once for one secret.

use crate::load::{self, Load, Plan, Use};
use crate::report::{Figure, Report};
use crate::sdk;
use crate::servers::{NAMESPACE, SMALL, Stage};
use crate::{Outcome, Pace, process};
use aws_sdk_sts::config::{BehaviorVersion, Region};
use std::time::Duration;
use testkit::aws::{Behaviour, Fault, Operation};
use testkit::jwt::{Bound, Claims};
use testkit::sandbox::{ACCOUNT, REGION};

/// How many miss the same secret at once.
const AT_ONCE: usize = 64;

/// How long the vault takes meanwhile.
const SLOW: Duration = Duration::from_millis(200);

pub(crate) async fn measure(stage: &Stage, pace: Pace, report: &mut Report) -> Outcome<()> {
    let agent = stage
        .agent(stage.unlimited("uncached", false)?, true)
        .await?;
    stage.canned(&agent, SMALL).await?;
    // One secret for each connection: equal reads of one pod would share one call.
    for number in 0..16 {
        stage
            .sandbox
            .aws_secret(&format!("bench/own-{number}"), &"s".repeat(64));
    }
    let session = session(stage).await?;
    for round in 0..pace.rounds {
        for connections in [1, 16] {
            for turn in 0..2 {
                process::until_quiet().await?;
                let (server, load) = if (round + turn) % 2 == 0 {
                    let plan = Plan {
                        address: agent.socket().into(),
                        path: "/v1/secrets/bench/own-{}".to_owned(),
                        mode: Use::Keep,
                        connections,
                        warm_up: pace.warm_up,
                        run: pace.run,
                        server: agent.pid(),
                    };
                    (
                        "agent",
                        load::make(&plan, stage.pod.workload.entrance().as_deref()).await?,
                    )
                } else {
                    let plan = sdk::Plan {
                        connections,
                        warm_up: pace.warm_up,
                        run: pace.run,
                        ..session.clone()
                    };
                    ("bare SDK", bare(&plan).await?)
                };
                let what = "uncached, kept".to_owned();
                report.add(Figure {
                    what,
                    connections,
                    server: server.to_owned(),
                    load,
                });
            }
        }
    }
    at_once(stage, report).await
}

/// Lets many connections of one pod miss the same secret, and counts the calls to the vault.
async fn at_once(stage: &Stage, report: &mut Report) -> Outcome<()> {
    let agent = stage.agent(stage.unlimited("at-once", true)?, true).await?;
    stage.sandbox.aws_secret("bench/missed", "missed");
    let slow = stage
        .sandbox
        .aws
        .fault(Fault::on(Operation::GetSecretValue, Behaviour::Delay(SLOW)));
    let plan = Plan {
        address: agent.socket().into(),
        path: "/v1/secrets/bench/missed".to_owned(),
        mode: Use::Once,
        connections: AT_ONCE,
        warm_up: Duration::ZERO,
        run: Duration::from_secs(5),
        server: agent.pid(),
    };
    stage.sandbox.aws.clear_calls();
    let load = load::make(&plan, stage.pod.workload.entrance().as_deref()).await?;
    drop(slow);
    let calls = |operation| stage.sandbox.aws.count_of(operation);
    report.number("at_once_answered", load::exact(load.answered));
    report.number(
        "at_once_reads",
        load::exact(calls(Operation::GetSecretValue)),
    );
    report.number(
        "at_once_exchanges",
        load::exact(calls(Operation::AssumeRoleWithWebIdentity)),
    );
    Ok(())
}

/// What the bare SDK, or another agent, needs: a session of the same role, got in the same way.
pub(crate) async fn session(stage: &Stage) -> Outcome<sdk::Plan> {
    let (kube, aws) = (&stage.sandbox.kube, &stage.sandbox.aws);
    let account = Bound::new(ACCOUNT, kube.service_account_uid(NAMESPACE, ACCOUNT));
    let claims = Claims::new(
        kube.issuer().url(),
        NAMESPACE,
        account,
        None,
        "sts.amazonaws.com",
        600,
    );
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(aws.endpoint())
        .build();
    let answer = aws_sdk_sts::Client::from_conf(config)
        .assume_role_with_web_identity()
        .role_arn(aws.role_arn(&format!("{NAMESPACE}-{ACCOUNT}")))
        .role_session_name("bench")
        .web_identity_token(kube.issuer().sign(&claims))
        .send()
        .await?;
    let credentials = answer.credentials.ok_or("no credentials")?;
    Ok(sdk::Plan {
        endpoint: aws.endpoint(),
        region: REGION.to_owned(),
        credentials: [
            credentials.access_key_id,
            credentials.secret_access_key,
            credentials.session_token,
        ],
        secret: "bench/own-{}".to_owned(),
        connections: 1,
        warm_up: Duration::ZERO,
        run: Duration::ZERO,
    })
}

async fn bare(plan: &sdk::Plan) -> Outcome<Load> {
    let output = load::spawn(sdk::PART, plan, None)?
        .wait_with_output()
        .await?;
    if !output.status.success() {
        return Err(format!(
            "the SDK failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
