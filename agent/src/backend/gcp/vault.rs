//! The SDK's client, over the agent's own wire.
//!
//! The SDK takes no other HTTP client, but it has a trait for what answers its calls, made for its users' tests. Here
//! that is the transport of one call, with the bearer of the call's session and no other within reach.

use super::bearer::Bearer;
use crate::backend::wire::{Answer, Wire, WireError};
use crate::secret::SecretValue;
use google_cloud_gax::error::Error;
use google_cloud_gax::error::rpc::Status;
use google_cloud_gax::options::RequestOptions;
use google_cloud_gax::response::Response;
use google_cloud_secretmanager_v1::client::SecretManagerService;
use google_cloud_secretmanager_v1::model::{
    AccessSecretVersionRequest, AccessSecretVersionResponse, ListSecretsRequest,
    ListSecretsResponse,
};
use google_cloud_secretmanager_v1::{Result, stub};
use hyper::header::{HOST, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// The longest answer, in bytes: a value has at most 64 KiB, and each of a thousand listed secrets has labels,
/// annotations and replicas.
const MAX_ANSWER: usize = 8 << 20;

/// What Google calls the service, in the names of its hosts.
const SERVICE: &str = "secretmanager";

/// Secret Manager.
#[derive(Clone, Debug)]
pub(super) struct Vault {
    pub(super) wire: Wire,
    /// The base URL.
    pub(super) url: Arc<str>,
    /// How long one call may take.
    pub(super) timeout: Duration,
}

/// One call's transport.
#[derive(Debug)]
struct Transport {
    vault: Vault,
    headers: HeaderMap,
}

// === impl Vault ===

impl Vault {
    /// Returns the SDK's client for a call with this bearer, for this reason.
    pub(super) fn client(&self, bearer: &Bearer, reason: HeaderValue) -> SecretManagerService {
        SecretManagerService::from_stub(Transport {
            vault: self.clone(),
            headers: bearer.headers(reason),
        })
    }
}

// === impl Transport ===

impl stub::SecretManagerService for Transport {
    async fn access_secret_version(
        &self,
        request: AccessSecretVersionRequest,
        _options: RequestOptions,
    ) -> Result<Response<AccessSecretVersionResponse>> {
        self.get(&format!("{}:access", request.name), &[]).await
    }

    async fn list_secrets(
        &self,
        request: ListSecretsRequest,
        _options: RequestOptions,
    ) -> Result<Response<ListSecretsResponse>> {
        let query = [
            ("pageSize", &*request.page_size.to_string()),
            ("pageToken", &request.page_token),
            ("filter", &request.filter),
            // Labels and annotations of a thousand secrets would be longer than an answer may be.
            ("$fields", "nextPageToken,secrets.name"),
        ];
        self.get(&format!("{}/secrets", request.parent), &query)
            .await
    }
}

impl Transport {
    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Response<T>> {
        let Vault { wire, url, timeout } = &self.vault;
        let mut url = Url::parse(&format!("{url}/v1/{path}")).map_err(Error::ser)?;
        url.query_pairs_mut()
            .extend_pairs(query)
            .append_pair("$alt", "json;enum-encoding=int");
        let host = host_beside(&url);
        let mut request = reqwest::Request::new(Method::GET, url);
        *request.headers_mut() = self.headers.clone();
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        let answer = wire.ask(request, *timeout, MAX_ANSWER).await;
        let answer = answer.map_err(unanswered)?;
        if !answer.status().is_success() {
            return Err(refused(answer));
        }
        let model = serde_json::from_slice(answer.body()).map_err(Error::deser)?;
        Ok(Response::from(model))
    }
}

/// The host that a request must name if it is not the URL's: virtual addresses and Private Service Connect have names of
/// their own, and know by this header which service is meant. The SDK's own transport does the same (its host.rs).
fn host_beside(url: &Url) -> Option<HeaderValue> {
    let name = url.host_str()?.strip_suffix(".googleapis.com")?;
    let parts: Vec<&str> = name.split('.').collect();
    let is_the_services = match parts[..] {
        [service, _, "rep"] => service == SERVICE,
        [name] => name == SERVICE || name.ends_with("-secretmanager"),
        _ => false,
    };
    (!is_the_services).then_some(HeaderValue::from_static("secretmanager.googleapis.com"))
}

fn unanswered(error: WireError) -> Error {
    match error {
        WireError::Lost(error) if error.is_connect() => Error::connect(error),
        WireError::Lost(error) if error.is_timeout() => Error::timeout(error),
        WireError::Lost(error) => Error::io(error),
        WireError::TooLong(_) => Error::deser(error),
    }
}

fn refused(answer: Answer) -> Error {
    let (head, body) = answer.into_parts();
    let http = head.status.as_u16();
    let body = SecretValue::from(body).into_bytes();
    match Status::try_from(&body) {
        Ok(status) => Error::service_with_http_metadata(status, Some(http), Some(head.headers)),
        Err(_) => Error::http(http, head.headers, body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_name_is_not_the_services_own_the_service_is_named() {
        let beside = |host: &str| {
            let url = Url::parse(&format!("https://{host}/v1/x")).expect("a URL");
            host_beside(&url)
        };
        for own in [
            "secretmanager.googleapis.com",
            "secretmanager.europe-west3.rep.googleapis.com",
            "europe-west3-secretmanager.googleapis.com",
            "localhost",
            "secrets.example.com",
        ] {
            assert_eq!(beside(own), None, "{own}");
        }
        for other in [
            "private.googleapis.com",
            "restricted.googleapis.com",
            "secretmanager-mine.p.googleapis.com",
            "storage.europe-west3.rep.googleapis.com",
        ] {
            let named = beside(other).expect("another name");
            assert_eq!(named, "secretmanager.googleapis.com", "{other}");
        }
    }
}
