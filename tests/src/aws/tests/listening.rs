//! Faults, and listeners that come and go.

use super::*;

#[tokio::test]
async fn aws_faults_strike_what_they_match_and_no_longer_than_told() {
    let cloud = Cloud::start().await;
    for region in [REGION, "eu-west-1"] {
        cloud
            .aws
            .put_secret(region, "test/a", SecretInput::text("a"));
        cloud
            .aws
            .put_secret(region, "test/b", SecretInput::text("b"));
    }
    cloud
        .aws
        .set_policy(&cloud.role, &read_policy(&["*"]))
        .expect("good policy");
    let session = cloud.session().await;
    let read = async |name: &str| cloud.read(&session, name).await;
    let fault = |behaviour| Fault::on(Operation::GetSecretValue, behaviour).for_secret("test/a");

    for (behaviour, expected) in [
        (Behaviour::Throttle(Some(3)), "ThrottlingException"),
        (Behaviour::InternalError, "InternalServiceError"),
        (Behaviour::ServiceUnavailable, "ServiceUnavailable"),
        (
            Behaviour::Special(Special::KmsDenied),
            "AccessDeniedException",
        ),
        (
            Behaviour::Special(Special::DecryptionFailure),
            "DecryptionFailure",
        ),
        (Behaviour::Disconnect, "dispatch failure"),
        (Behaviour::CutBody, "response error"),
        // To the SDK, what is neither JSON nor an error is a service error without a code.
        (Behaviour::TruncatedBody, "no code"),
        (Behaviour::Html(200), "no code"),
    ] {
        let guard = cloud.aws.fault(fault(behaviour.clone()).times(1));
        assert_eq!(read("test/b").await.as_deref(), Ok("b"), "{behaviour:?}");
        assert_eq!(code(read("test/a").await), expected, "{behaviour:?}");
        assert_eq!(read("test/a").await.as_deref(), Ok("a"), "{behaviour:?}");
        drop(guard);
    }

    let guard = cloud
        .aws
        .fault(Fault::everywhere(Behaviour::InternalError).in_region(REGION));
    assert_eq!(code(read("test/b").await), "InternalServiceError");
    assert!(
        get(&cloud.reader("eu-west-1", &session), "test/b")
            .await
            .is_ok()
    );
    drop(guard);
    assert!(read("test/b").await.is_ok());

    let _guard = cloud.aws.fault(
        Fault::on(
            Operation::AssumeRoleWithWebIdentity,
            Behaviour::Throttle(None),
        )
        .for_role(&cloud.role),
    );
    assert_eq!(
        code(cloud.assume(&cloud.role, &cloud.token()).await),
        "Throttling"
    );
}

#[tokio::test]
async fn aws_holds_calls_at_a_gate_and_hangs_without_an_answer() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let session = cloud.session().await;
    let (gate, guard) = cloud.aws.hold(Operation::GetSecretValue);
    let read = cloud.read(&session, "test/db");
    let open = async {
        gate.reached(1).await;
        let answered = cloud.aws.count_of(Operation::GetSecretValue);
        gate.open();
        answered
    };
    let (value, answered_before) = tokio::join!(read, open);
    assert_eq!((value.as_deref(), answered_before), (Ok("hunter2"), 0));
    drop(guard);

    let _guard = cloud.aws.fault(Fault::everywhere(Behaviour::Hang));
    let hung = |call: &Call| call.error.as_deref() == Some("fault: hang");
    tokio::select! {
        answer = cloud.read(&session, "test/db") => panic!("answered: {answer:?}"),
        seen = cloud.aws.called(1, PATIENCE, hung) => assert!(seen),
    }
}

#[tokio::test]
async fn aws_refuses_connections_while_it_does_not_listen() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let session = cloud.session().await;
    for _ in 0..3 {
        assert!(cloud.read(&session, "test/db").await.is_ok());
        cloud.aws.stop_listening().await;
        assert_eq!(
            code(cloud.read(&session, "test/db").await),
            "dispatch failure"
        );
        cloud
            .aws
            .resume_listening()
            .await
            .expect("the port is still ours");
    }
    assert!(cloud.read(&session, "test/db").await.is_ok());
}
