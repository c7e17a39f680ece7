//! One request: who sends it, what for, whether they may, and what goes wrong.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::faults::Fault;
use super::journal::Request;
use super::list::{self, ListOptions};
use super::node::Subject;
use super::rbac::Access;
use super::status::Status;
use super::store::{Key, Kind};
use super::{Cluster, token, watch};

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(super) type Answer = Response<Body>;

/// The largest body that is read, in bytes; the real server's limit is 3 MiB.
const MAX_BODY: usize = 3 << 20;

/// What a path leads to.
#[derive(Debug)]
enum Route {
    Object(Key),
    Objects {
        kind: Kind,
        namespace: String,
    },
    Token {
        namespace: String,
        service_account: String,
    },
    AccessReview,
    /// A path that is not a resource and open to everybody.
    Open(&'static str),
}

/// Answers a request and records it in the journal.
pub(super) async fn answer(cluster: Arc<Cluster>, request: http::Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let user = cluster.user(&parts.headers);
    let query = parts.uri.query().unwrap_or_default();
    let options: HashMap<String, String> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let route = Route::of(parts.uri.path());
    let watched = matches!(options.get("watch").map(String::as_str), Some("true" | "1"));
    let access = Access::of(&parts.method, route.as_ref(), parts.uri.path(), watched);
    let number = cluster.change(|state| {
        state.journal.asked(Request {
            user: user.clone().unwrap_or_default(),
            verb: access.verb.clone(),
            resource: access.resource.clone(),
            namespace: access.namespace.clone(),
            name: access.name.clone(),
            query: query.to_owned(),
            status: None,
        })
    });
    let answer = match cluster.strike(&access).await {
        Some(answer) => answer,
        None => {
            let work = serve(&cluster, user, route, &access, &parts, &options, body);
            work.await.unwrap_or_else(|status| refuse(&status))
        }
    };
    cluster.change(|state| state.journal.answered(number, answer.status().as_u16()));
    answer
}

/// Authentication, authorization, then the work: the real server's order.
async fn serve(
    cluster: &Arc<Cluster>,
    user: Option<String>,
    route: Option<Route>,
    access: &Access,
    parts: &http::request::Parts,
    options: &HashMap<String, String>,
    body: Incoming,
) -> Result<Answer, Status> {
    if let Some(Route::Open(path)) = route {
        return Ok(cluster.open(path));
    }
    let user = user.ok_or_else(Status::unauthorized)?;
    let subject = {
        let state = cluster.lock();
        let subject = Subject::of(&state, &user, &parts.headers, access)?;
        subject.judge(&state, access, options)?;
        subject
    };
    let route = route.ok_or_else(Status::no_such_resource)?;
    accepts_json(&parts.headers)?;
    match (route, &parts.method) {
        (Route::Object(key), &Method::GET) => list::get(cluster, &key),
        (Route::Objects { kind, namespace }, &Method::GET) => {
            let options = ListOptions::parse(&cluster.config, kind, options)?;
            if options.watch {
                watch::watch(cluster, kind, namespace, options)
            } else {
                list::list(cluster, kind, &namespace, &options)
            }
        }
        (
            Route::Token {
                namespace,
                service_account,
            },
            &Method::POST,
        ) => {
            let request = read(&parts.headers, "application/json", body).await?;
            token::create(cluster, &subject, &namespace, &service_account, &request)
        }
        (Route::Object(key), &Method::PATCH) if key.kind == Kind::Node => {
            let patch = read(&parts.headers, "application/merge-patch+json", body).await?;
            cluster.patch(&key, &patch)
        }
        (Route::AccessReview, &Method::POST) => {
            let review = read(&parts.headers, "application/json", body).await?;
            cluster.review(&user, review)
        }
        _ => Err(Status::method_not_allowed()),
    }
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        let path = path.trim_end_matches('/');
        let open = [
            "/healthz",
            "/livez",
            "/readyz",
            "/version",
            "/openid/v1/jwks",
            "/.well-known/openid-configuration",
        ];
        if let Some(path) = open.into_iter().find(|open| *open == path) {
            return Some(Self::Open(path));
        }
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" {
            return Some(Self::AccessReview);
        }
        let decoded: Vec<String> = path
            .strip_prefix("/api/v1/")?
            .split('/')
            .map(percent_decoded)
            .collect::<Option<_>>()?;
        let words: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let owned = |text: &str| text.to_owned();
        match words.as_slice() {
            ["namespaces"] => Some(Self::Objects {
                kind: Kind::Namespace,
                namespace: String::new(),
            }),
            ["namespaces", name] => Some(Self::Object(Key::new(Kind::Namespace, "", name))),
            ["nodes", name] => Some(Self::Object(Key::new(Kind::Node, "", name))),
            ["namespaces", namespace, "serviceaccounts", name, "token"] => Some(Self::Token {
                namespace: owned(namespace),
                service_account: owned(name),
            }),
            ["namespaces", namespace, resource, name] => {
                let kind = Kind::of_resource(resource).filter(|kind| kind.is_namespaced())?;
                Some(Self::Object(Key::new(kind, namespace, name)))
            }
            ["namespaces", namespace, resource] => {
                let kind = Kind::of_resource(resource).filter(|kind| kind.is_namespaced())?;
                Some(Self::Objects {
                    kind,
                    namespace: owned(namespace),
                })
            }
            [resource] => {
                let kind = Kind::of_resource(resource)?;
                Some(Self::Objects {
                    kind,
                    namespace: String::new(),
                })
            }
            _ => None,
        }
    }
}

impl Access {
    /// What a request wants, in RBAC's terms.
    fn of(method: &Method, route: Option<&Route>, path: &str, watched: bool) -> Self {
        let read = |verb: &str| match *method {
            Method::GET | Method::HEAD => verb.to_owned(),
            Method::POST => "create".to_owned(),
            Method::PUT => "update".to_owned(),
            _ => method.as_str().to_lowercase(),
        };
        match route {
            Some(Route::Object(key)) => Self {
                verb: read("get"),
                resource: key.kind.resource().to_owned(),
                // To RBAC, a namespace is in itself.
                namespace: if key.kind == Kind::Namespace {
                    &key.name
                } else {
                    &key.namespace
                }
                .clone(),
                name: key.name.clone(),
            },
            Some(Route::Objects { kind, namespace }) => Self {
                verb: read(if watched { "watch" } else { "list" }),
                resource: kind.resource().to_owned(),
                namespace: namespace.clone(),
                name: String::new(),
            },
            Some(Route::Token {
                namespace,
                service_account,
            }) => Self {
                verb: read("get"),
                resource: "serviceaccounts/token".to_owned(),
                namespace: namespace.clone(),
                name: service_account.clone(),
            },
            Some(Route::AccessReview) => Self {
                verb: read("get"),
                resource: "selfsubjectaccessreviews".to_owned(),
                ..Self::default()
            },
            Some(Route::Open(_)) | None => Self {
                verb: method.as_str().to_lowercase(),
                resource: path.to_owned(),
                ..Self::default()
            },
        }
    }
}

impl Cluster {
    fn user(&self, headers: &HeaderMap) -> Option<String> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let token = value.strip_prefix("Bearer ")?;
        self.lock().users.get(token).cloned()
    }

    /// Applies the fault that a test has set for such a request; its answer, if any, is the answer.
    async fn strike(&self, access: &Access) -> Option<Answer> {
        let mut changed = self.changed.subscribe();
        loop {
            let fault = self.lock().faults.strike(&access.verb, &access.resource)?;
            match fault {
                Fault::Answer(code, retry_after) => {
                    let code =
                        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    return Some(refuse(&Status::failure(code, retry_after)));
                }
                Fault::Delay(delay) => {
                    tokio::time::sleep(delay).await;
                    return None;
                }
                Fault::Garbage => {
                    return Some(text(StatusCode::OK, "application/json", "{\"kind\":"));
                }
                Fault::Hang => {
                    if changed.changed().await.is_err() {
                        return None;
                    }
                }
            }
        }
    }

    fn open(&self, path: &str) -> Answer {
        match path {
            "/openid/v1/jwks" => text(
                StatusCode::OK,
                "application/jwk-set+json",
                &self.issuer.jwks().to_string(),
            ),
            "/.well-known/openid-configuration" => {
                respond(StatusCode::OK, &self.issuer.discovery())
            }
            "/version" => respond(
                StatusCode::OK,
                &json!({
                    "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "clean",
                    "buildDate": "2025-04-23T13:21:42Z", "goVersion": "go1.24.2", "compiler": "gc",
                    "platform": "linux/amd64",
                }),
            ),
            _ => text(StatusCode::OK, "text/plain; charset=utf-8", "ok"),
        }
    }

    /// `SelfSubjectAccessReview`: what RBAC would say.
    fn review(&self, user: &str, mut review: Value) -> Result<Answer, Status> {
        let attributes = &review["spec"]["resourceAttributes"];
        if !attributes.is_object() {
            let message =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(Status::invalid(
                "authorization.k8s.io",
                "SelfSubjectAccessReview",
                "spec.resourceAttributes",
                "FieldValueInvalid",
                message,
            ));
        }
        let word = |name: &str| attributes[name].as_str().unwrap_or_default().to_owned();
        let resource = match word("subresource") {
            subresource if subresource.is_empty() => word("resource"),
            subresource => format!("{}/{subresource}", word("resource")),
        };
        let access = Access {
            verb: word("verb"),
            resource,
            namespace: word("namespace"),
            name: word("name"),
        };
        let group = if access.verb.starts_with("impersonate:") {
            "authentication.k8s.io"
        } else {
            ""
        };
        let allowed = word("group") == group && self.lock().rbac.allows(user, &access);
        review["kind"] = "SelfSubjectAccessReview".into();
        review["apiVersion"] = "authorization.k8s.io/v1".into();
        review["status"] = if allowed {
            json!({"allowed": true, "reason": "RBAC: allowed by ClusterRoleBinding \"latchkey-agent\""})
        } else {
            json!({"allowed": false})
        };
        Ok(respond(StatusCode::CREATED, &review))
    }
}

fn accepts_json(headers: &HeaderMap) -> Result<(), Status> {
    let Some(accept) = headers.get(header::ACCEPT) else {
        return Ok(());
    };
    let accept = accept.to_str().unwrap_or_default();
    let accepted = accept.split(',').any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let json = matches!(
            parts.next(),
            Some("application/json" | "application/*" | "*/*")
        );
        // Tables and bare metadata are conversions that this server does not support.
        json && !parts.any(|parameter| parameter.starts_with("as="))
    });
    if accepted {
        Ok(())
    } else {
        Err(Status::not_acceptable())
    }
}

async fn read(headers: &HeaderMap, media_type: &str, body: Incoming) -> Result<Value, Status> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if kind.is_some_and(|kind| kind.split(';').next() != Some(media_type)) {
        return Err(Status::unsupported_media_type());
    }
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(|_| {
        Status::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "limit is 3145728",
        )
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| {
        Status::bad_request(&format!(
            "couldn't get version/kind; json parse error: {error}"
        ))
    })
}

pub(super) fn respond(code: StatusCode, body: &Value) -> Answer {
    text(code, "application/json", &body.to_string())
}

fn refuse(status: &Status) -> Answer {
    let mut answer = respond(status.code, &status.body);
    if let Some(seconds) = status.retry_after {
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

fn text(code: StatusCode, kind: &'static str, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_owned())).boxed_unsync());
    *answer.status_mut() = code;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}

fn percent_decoded(word: &str) -> Option<String> {
    let decoded = percent_decode_str(word).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}
