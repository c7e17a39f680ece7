//! `TokenRequest`: the real server's checks in its order and its words, and a really signed token.
//!
//! One check is stricter: an empty list of audiences is refused, where the real server would use its own audience.

use http::StatusCode;
use serde_json::{Value, json};

use super::api::{Answer, respond};
use super::journal::TokenRequested;
use super::node::Subject;
use super::objects::{timestamp, uid_of};
use super::status::Status;
use super::store::{Key, Kind};
use super::{Cluster, State};
use crate::jwt::{Bound, Claims};

/// The API group in errors.
const GROUP: &str = "authentication.k8s.io";
/// The shortest lifetime that may be requested, in seconds.
const MIN_SECONDS: i64 = 600;
/// The lifetime of a token if the request names none, in seconds.
const DEFAULT_SECONDS: i64 = 3600;

/// A `TokenRequest`'s spec.
struct Wish {
    audiences: Vec<String>,
    expiration_seconds: Option<i64>,
    bound: Option<BoundReference>,
}

struct BoundReference {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

/// Checks the request, records it, and signs the token.
pub(super) fn create(
    cluster: &Cluster,
    subject: &Subject,
    namespace: &str,
    service_account: &str,
    request: &Value,
) -> Result<Answer, Status> {
    let wish = Wish::parse(request)?;
    let claims = {
        let state = cluster.lock();
        subject
            .admit_token(&state, namespace, service_account, request)
            .and_then(|()| wish.grant(cluster, &state, namespace, service_account))
    };
    let token = claims
        .as_ref()
        .ok()
        .map(|claims| cluster.issuer.sign(claims));
    let status = match &claims {
        Ok(_) => StatusCode::CREATED,
        Err(refused) => refused.code,
    };
    cluster.change(|state| {
        state.journal.tokens.push(TokenRequested {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            audiences: wish.audiences.clone(),
            expiration_seconds: wish.expiration_seconds,
            pod: wish
                .bound
                .as_ref()
                .map(|bound| (bound.name.clone(), bound.uid.clone())),
            token: token.clone(),
            status: status.as_u16(),
        });
    });
    let claims = claims?;
    let expires = jiff::Timestamp::from_second(claims.exp).unwrap_or_default();
    let mut answer = request.clone();
    answer["kind"] = "TokenRequest".into();
    answer["apiVersion"] = format!("{GROUP}/v1").into();
    answer["metadata"] = json!({
        "name": service_account, "namespace": namespace, "creationTimestamp": timestamp(jiff::Timestamp::now()),
    });
    answer["spec"]["expirationSeconds"] = (claims.exp - claims.iat).into();
    answer["status"] = json!({"token": token, "expirationTimestamp": timestamp(expires)});
    Ok(respond(StatusCode::CREATED, &answer))
}

impl Wish {
    fn parse(request: &Value) -> Result<Self, Status> {
        let right = |field: &str, value: &str| request[field].is_null() || request[field] == value;
        if !right("apiVersion", "authentication.k8s.io/v1") || !right("kind", "TokenRequest") {
            let (kind, version) = (&request["kind"], &request["apiVersion"]);
            let message = format!("no kind {kind} is registered for version {version} in scheme");
            return Err(Status::bad_request(&message));
        }
        let malformed = |field: &str| {
            Status::bad_request(&format!(
                "TokenRequest in version \"v1\" cannot be handled: {field} has the wrong type"
            ))
        };
        let spec = &request["spec"];
        let audiences = match &spec["audiences"] {
            Value::Null => Vec::new(),
            Value::Array(list) => list
                .iter()
                .map(|audience| audience.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| malformed("spec.audiences"))?,
            _ => return Err(malformed("spec.audiences")),
        };
        let expiration_seconds = match &spec["expirationSeconds"] {
            Value::Null => None,
            value => Some(
                value
                    .as_i64()
                    .ok_or_else(|| malformed("spec.expirationSeconds"))?,
            ),
        };
        let bound = match &spec["boundObjectRef"] {
            Value::Null => None,
            Value::Object(reference) => {
                let word = |name: &str| {
                    reference
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                Some(BoundReference {
                    api_version: word("apiVersion"),
                    kind: word("kind"),
                    name: word("name"),
                    uid: word("uid"),
                })
            }
            _ => return Err(malformed("spec.boundObjectRef")),
        };
        Ok(Self {
            audiences,
            expiration_seconds,
            bound,
        })
    }

    /// The claims of the token, if all checks pass.
    fn grant(
        &self,
        cluster: &Cluster,
        state: &State,
        namespace: &str,
        service_account: &str,
    ) -> Result<Claims, Status> {
        let key = Key::new(Kind::ServiceAccount, namespace, service_account);
        let account = state
            .store
            .object(&key)
            .ok_or_else(|| Status::not_found(&key))?;
        let seconds = self.seconds()?;
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(invalid(
                "spec.audiences",
                "Required value: this server gives no token without an audience",
            ));
        }
        let pod = self.bound_pod(state, namespace, service_account)?;
        let mut claims = Claims::new(
            cluster.issuer.url(),
            namespace,
            Bound::new(service_account, uid_of(account)),
            pod,
            "",
            seconds.min(cluster.config.max_token_seconds),
        );
        claims.aud.clone_from(&self.audiences);
        Ok(claims)
    }

    fn seconds(&self) -> Result<i64, Status> {
        let seconds = self.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        if seconds < MIN_SECONDS {
            let message = format!(
                "Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            );
            return Err(invalid("spec.expirationSeconds", &message));
        }
        if seconds > 1 << 32 {
            let message = format!(
                "Invalid value: {seconds}: may not specify a duration larger than 2^32 seconds"
            );
            return Err(invalid("spec.expirationSeconds", &message));
        }
        Ok(seconds)
    }

    fn bound_pod(
        &self,
        state: &State,
        namespace: &str,
        service_account: &str,
    ) -> Result<Option<Bound>, Status> {
        let Some(BoundReference {
            api_version,
            kind,
            name,
            uid,
        }) = &self.bound
        else {
            return Ok(None);
        };
        if (api_version.as_str(), kind.as_str()) != ("v1", "Pod") {
            let message = format!("cannot bind token to object of type {api_version}, Kind={kind}");
            return Err(Status::bad_request(&message));
        }
        let key = Key::new(Kind::Pod, namespace, name);
        let pod = state
            .store
            .object(&key)
            .ok_or_else(|| Status::not_found(&key))?;
        if pod["spec"]["serviceAccountName"] != service_account {
            return Err(Status::bad_request(&format!(
                "cannot bind token for serviceaccount \"{service_account}\" to pod running with different \
                 serviceaccount name."
            )));
        }
        let record = uid_of(pod);
        if !uid.is_empty() && *uid != record {
            return Err(Status::conflict(
                kind,
                name,
                &format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object \
                     might have been deleted and then recreated"
                ),
            ));
        }
        Ok(Some(Bound::new(name.as_str(), record)))
    }
}

fn invalid(field: &str, message: &str) -> Status {
    let cause = if message.starts_with("Required") {
        "FieldValueRequired"
    } else {
        "FieldValueInvalid"
    };
    Status::invalid(GROUP, "TokenRequest", field, cause, message)
}
