//! Which regions are asked when one cannot be reached, and which answers are believed.

use super::*;
use crate::backend::wire::Roots;
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_sdk_secretsmanager::types::SecretListEntry;

#[tokio::test]
async fn a_token_service_that_cannot_be_reached_takes_no_region_from_the_vault() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let settings = AwsConfig {
        region: Some("eu-central-1".to_owned()),
        fallback_regions: vec!["eu-west-1".to_owned()],
        // Nothing listens there.
        sts_endpoint: Some("http://127.0.0.1:9".to_owned()),
        ..AwsConfig::default()
    };
    let aws = Aws::open(
        "aws",
        &settings,
        Duration::from_secs(3600),
        &Wire::new(Roots::load()),
    )
    .await;
    let aws = aws.expect("clients");
    let annotation = (
        "latchkey.dev/aws-role-arn",
        "arn:aws:iam::111122223333:role/app",
    );
    let role = aws.role(&Annotations::of(&[annotation], &[]));
    let role = role.expect("a role");
    let caller = Caller {
        pod_uid: "0".repeat(32),
        namespace: "test".into(),
        service_account: "app".into(),
        request_id: crate::request::RequestId::new("1f0c77aa", 42),
    };
    let token = SubjectToken::from("token".to_owned());
    let failed = aws.exchange(&role, Some(token), &caller).await.err();
    assert_eq!(
        failed.map(|failed| failed.fault),
        Some(crate::backend::Fault::Unreachable)
    );
    let down = |health: &Health| health.0.lock().len();
    assert_eq!((down(&aws.sts_health), down(&aws.store_health)), (2, 0));
}

#[test]
fn an_answer_is_about_the_secret_and_the_version_that_were_asked_for() {
    const HOME: &str = "eu-central-1";
    const ARN: &str = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:test/db-Ab1Cd2";
    let of = |name: &str, arn: &str, version: &str| {
        GetSecretValueOutput::builder()
            .name(name)
            .arn(arn)
            .version_id(version)
            .build()
    };
    let latest = Selector::default();
    let first = Selector {
        version: Some("v1".into()),
        ..Selector::default()
    };
    let right = of("test/db", ARN, "v1");
    let own = role();
    for id in ["test/db", ARN, ARN.trim_end_matches("-Ab1Cd2")] {
        assert!(is_about(&right, id, &latest, &own, HOME), "{id}");
        assert!(is_about(&right, id, &first, &own, HOME), "{id}");
        let second = of("test/db", ARN, "v2");
        assert!(!is_about(&second, id, &first, &own, HOME), "{id}");
        let other = of("other/db", &ARN.replace("test/db", "other/db"), "v1");
        assert!(!is_about(&other, id, &latest, &own, HOME), "{id}");
    }
    // What else begins like the ARN that was asked for.
    let short = ARN.trim_end_matches("-Ab1Cd2");
    for arn in [
        format!("{short}-prod/other-AbCdEf"),
        format!("{short}x-AbCdEf"),
        format!("{short}-other-AbCdEf"),
    ] {
        let other = of("test/db-prod", &arn, "v1");
        assert!(!is_about(&other, short, &latest, &own, HOME), "{arn}");
    }
    let staged = |stage: &str| Selector {
        stage: Some(stage.into()),
        ..Selector::default()
    };
    let previous = GetSecretValueOutput::builder()
        .name("test/db")
        .arn(ARN)
        .version_id("v1")
        .version_stages("AWSPREVIOUS")
        .build();
    assert!(is_about(
        &previous,
        "test/db",
        &staged("AWSPREVIOUS"),
        &own,
        HOME
    ));
    assert!(!is_about(
        &previous,
        "test/db",
        &staged("AWSCURRENT"),
        &own,
        HOME
    ));
    let nameless = GetSecretValueOutput::builder().version_id("v1").build();
    assert!(!is_about(&nameless, "test/db", &latest, &own, HOME));
    // A copy in another region is another secret, except to whom its ARN is given.
    let copy = ARN.replace(HOME, "eu-west-1");
    let copied = of("test/db", &copy, "v1");
    assert!(is_about(&copied, &copy, &latest, &own, HOME));
    assert!(!is_about(&copied, "test/db", &latest, &own, HOME));
    // Another account may share a secret by its ARN, but has no part in names.
    let theirs = ARN.replace("111122223333", "444455556666");
    let shared = of("test/db", &theirs, "v1");
    assert!(is_about(&shared, &theirs, &latest, &own, HOME));
    assert!(!is_about(&shared, "test/db", &latest, &own, HOME));
    let machine = Role {
        name: role::MACHINE.into(),
        ..own
    };
    assert!(is_about(&shared, "test/db", &latest, &machine, HOME));
}

#[test]
fn what_was_listed_for_another_account_or_region_is_not_shown() {
    let role = Role {
        prefix: "test/".into(),
        ..role()
    };
    let arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:test/rds!db-Ab1Cd2";
    let shown = |name: &str, arn: &str| {
        let secret = SecretListEntry::builder().name(name).arn(arn).build();
        listed(&secret, &role, "eu-central-1")
    };
    assert_eq!(shown("test/db", arn).as_deref(), Some("db"));
    assert_eq!(shown("other/db", arn), None);
    for (here, there) in [("111122223333", "444455556666"), ("central", "west")] {
        assert_eq!(shown("test/db", &arn.replace(here, there)), None, "{there}");
    }
}

#[test]
fn credentials_are_those_of_the_session_that_was_asked_for_or_none() {
    let role = role();
    let until = |ends: SystemTime, arn: Option<&str>| {
        let user = arn.map(|arn| {
            let user = sts::types::AssumedRoleUser::builder();
            user.arn(arn)
                .assumed_role_id("AROA:x")
                .build()
                .expect("it is whole")
        });
        let given = sts::types::Credentials::builder()
            .access_key_id("a")
            .secret_access_key("b")
            .session_token("c")
            .expiration(ends.into())
            .build();
        session_credentials(
            &role,
            "uid.test.app",
            user,
            Some(given.expect("they are whole")),
        )
    };
    let answered = |arn: Option<&str>| until(SystemTime::UNIX_EPOCH + Duration::from_secs(1), arn);
    let right = "arn:aws:sts::111122223333:assumed-role/app/uid.test.app";
    assert!(answered(Some(right)).is_ok());
    let broken_off = until(SystemTime::UNIX_EPOCH, Some(right)).expect_err("no time was given");
    assert!(!broken_off.error.to_string().contains("clock"));
    for (here, there) in [
        ("111122223333", "444455556666"),
        ("/app/", "/other/"),
        ("/app/", "/team/app/"),
        ("/uid.", "/other."),
        ("aws", "aws-cn"),
        ("uid.test.app", "uid.test.app2"),
    ] {
        let failed = answered(Some(&right.replacen(here, there, 1))).expect_err(there);
        assert_eq!(failed.fault, crate::backend::Fault::Unreachable, "{there}");
    }
    assert!(answered(None).is_err());
}

/// A role with a path.
fn role() -> Role {
    Role {
        name: "arn:aws:iam::111122223333:role/team/app".into(),
        proof: crate::role::Proof::Token("sts.amazonaws.com".into()),
        prefix: "".into(),
        place: "eu-central-1".into(),
        via: None,
    }
}
