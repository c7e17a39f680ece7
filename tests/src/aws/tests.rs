//! Tests the fake with the real AWS SDK.

use std::time::Duration;

use aws_sdk_secretsmanager as secretsmanager;
use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType};
use aws_sdk_sts as sts;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;
use crate::jwt::{Bound, Claims, Issuer};

mod listening;
mod reading;
mod sessions;
mod wire;

const REGION: &str = "eu-central-1";
const AUDIENCE: &str = "sts.amazonaws.com";
const PATIENCE: Duration = Duration::from_secs(10);

/// A cloud that trusts one cluster, with the role `reader` for the service account `test/app`, which may read `test/*`.
struct Cloud {
    aws: FakeAws,
    issuer: Issuer,
    role: String,
}

impl Cloud {
    async fn start() -> Self {
        Self::with(FakeAwsConfig::default()).await
    }

    async fn with(config: FakeAwsConfig) -> Self {
        let aws = FakeAws::start(config).await.expect("it starts");
        let issuer = Issuer::new("https://cluster.test/id/1");
        aws.add_oidc_provider(issuer.url(), &[AUDIENCE], &issuer.jwks());
        let role = aws.role_arn("team/reader");
        let cloud = Self { aws, issuer, role };
        cloud.aws.create_role(cloud.spec()).expect("good policies");
        cloud
    }

    fn spec(&self) -> RoleSpec {
        let provider = provider_arn("aws", self.aws.account(), self.issuer.url());
        let trust = trust_policy(&provider, "system:serviceaccount:test:app", AUDIENCE);
        let policy = read_and_list_policy(&[secret_arn(REGION, self.aws.account(), "test/*")]);
        RoleSpec::new(&self.role, trust, policy)
    }

    /// The claims that a pod of `test/app` would get.
    fn claims(&self) -> Claims {
        let pod = Some(Bound::new("app-1", "0b0e"));
        Claims::new(
            self.issuer.url(),
            "test",
            Bound::new("app", "5a"),
            pod,
            AUDIENCE,
            600,
        )
    }

    fn token(&self) -> String {
        self.issuer.sign(&self.claims())
    }

    async fn assume(&self, role: &str, token: &str) -> Result<Credentials, String> {
        let client = sts::Client::from_conf(
            sts::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(REGION))
                .endpoint_url(self.aws.endpoint())
                .retry_config(sts::config::retry::RetryConfig::disabled())
                .build(),
        );
        let asked = client
            .assume_role_with_web_identity()
            .role_arn(role)
            .role_session_name("pod.test.app")
            .web_identity_token(token);
        let answer = asked.send().await.map_err(|error| said(&error))?;
        let session = answer.credentials.expect("credentials");
        Ok(Credentials::from_keys(
            session.access_key_id,
            session.secret_access_key,
            Some(session.session_token),
        ))
    }

    async fn session(&self) -> Credentials {
        self.assume(&self.role, &self.token())
            .await
            .expect("a session")
    }

    fn reader(&self, region: &str, session: &Credentials) -> secretsmanager::Client {
        self.reader_at(&self.aws.endpoint(), region, session)
    }

    fn reader_at(
        &self,
        endpoint: &str,
        region: &str,
        session: &Credentials,
    ) -> secretsmanager::Client {
        secretsmanager::Client::from_conf(
            secretsmanager::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(region.to_owned()))
                .endpoint_url(endpoint)
                .credentials_provider(session.clone())
                .retry_config(secretsmanager::config::retry::RetryConfig::disabled())
                .build(),
        )
    }

    async fn read(&self, session: &Credentials, name: &str) -> Result<String, String> {
        let answer = get(&self.reader(REGION, session), name).await?;
        Ok(answer.secret_string.expect("text"))
    }
}

async fn get(client: &secretsmanager::Client, name: &str) -> Result<GetSecretValueOutput, String> {
    client
        .get_secret_value()
        .secret_id(name)
        .send()
        .await
        .map_err(|error| said(&error))
}

/// An error as `Code: message`, or the kind of failure.
fn said<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> String {
    match error {
        SdkError::ServiceError(_) => format!(
            "{}: {}",
            error.code().unwrap_or("no code"),
            error.message().unwrap_or("no message")
        ),
        SdkError::DispatchFailure(_) => "dispatch failure".to_owned(),
        SdkError::ResponseError(_) => "response error".to_owned(),
        _ => "another failure".to_owned(),
    }
}

fn code<T>(result: Result<T, String>) -> String {
    let error = result.err().expect("an error");
    error.split(':').next().unwrap_or_default().to_owned()
}

/// Claims with one member replaced.
fn altered(claims: &Claims, member: &str, value: Value) -> Value {
    let mut claims = serde_json::to_value(claims).expect("claims are JSON");
    claims[member] = value;
    claims
}
