//! Single objects and lists: resource versions, pages, and continue tokens that expire.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use http::StatusCode;
use serde_json::{Value, json};

use super::api::{Answer, respond};
use super::selector::Selector;
use super::status::Status;
use super::store::{Key, Kind};
use super::{Cluster, FakeKubeConfig};

/// The text for a token that is too old (apiserver, storage/etcd3/errors.go).
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You \
    can start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
    created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
const LIST_EXPIRED: &str = "The resourceVersion for the provided list is too old.";

/// `ListOptions`, checked as ValidateListOptions of the real server does.
#[derive(Clone, Debug)]
pub(super) struct ListOptions {
    pub(super) watch: bool,
    pub(super) selector: Selector,
    /// `None` is "the newest"; 0 is "any".
    pub(super) revision: Option<u64>,
    pub(super) exact: bool,
    pub(super) limit: Option<usize>,
    pub(super) resume: Option<Resume>,
    pub(super) bookmarks: bool,
    pub(super) initial_events: bool,
    pub(super) timeout_seconds: Option<u64>,
}

/// Where a paged list continues.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Resume {
    /// `None` is "whatever is there now", in a token issued in place of an expired one.
    revision: Option<u64>,
    /// The last key of the previous page.
    after: (String, String),
}

/// An object as it is.
pub(super) fn get(cluster: &Cluster, key: &Key) -> Result<Answer, Status> {
    let state = cluster.lock();
    let objects = state.store.rewound(state.readable(true));
    let object = objects.get(key).ok_or_else(|| Status::not_found(key))?;
    Ok(respond(StatusCode::OK, object))
}

/// A page of a list.
pub(super) fn list(
    cluster: &Cluster,
    kind: Kind,
    namespace: &str,
    options: &ListOptions,
) -> Result<Answer, Status> {
    let state = cluster.lock();
    let revision = match (&options.resume, options.revision) {
        (Some(resume), _) => resume.revision.unwrap_or_else(|| state.store.revision()),
        (None, None) => state.readable(true),
        (None, Some(asked)) => {
            let current = state.readable(false);
            if asked > current {
                return Err(Status::revision_too_large(asked, current));
            }
            if options.exact { asked } else { current }
        }
    };
    let consistent = options.exact || options.resume.is_some();
    let objects = if consistent {
        state
            .store
            .snapshot(revision)
            .map_err(|_| match &options.resume {
                Some(resume) => {
                    let mut status = Status::expired(CONTINUE_EXPIRED);
                    let next = Resume {
                        revision: None,
                        after: resume.after.clone(),
                    };
                    status.body["metadata"]["continue"] = next.token().into();
                    status
                }
                None => Status::expired(LIST_EXPIRED),
            })?
    } else {
        state.store.rewound(revision)
    };
    drop(state);
    let place = |key: &Key| (key.namespace.clone(), key.name.clone());
    let mut wanted = objects.iter().filter(|(key, object)| {
        key.kind == kind
            && (namespace.is_empty() || key.namespace == namespace)
            && options.selector.selects(object)
            && options
                .resume
                .as_ref()
                .is_none_or(|resume| place(key) > resume.after)
    });
    // The watch cache answers "any" from memory and knows no pages.
    let limit = options
        .limit
        .filter(|_| options.revision != Some(0) || options.resume.is_some());
    let page: Vec<_> = wanted.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let left = wanted.count();
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let (true, Some((last, _))) = (left > 0, page.last()) {
        metadata["continue"] = Resume {
            revision: Some(revision),
            after: place(last),
        }
        .token()
        .into();
        if options.selector.is_empty() {
            metadata["remainingItemCount"] = left.into();
        }
    }
    let items: Vec<Value> = page.into_iter().map(|(_, object)| bare(object)).collect();
    let kind = format!("{}List", kind.name());
    Ok(respond(
        StatusCode::OK,
        &json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}),
    ))
}

/// A list's item: without `kind` and `apiVersion`, which the list itself has.
fn bare(object: &Arc<Value>) -> Value {
    let mut item = Value::clone(object);
    if let Some(fields) = item.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    item
}

impl ListOptions {
    pub(super) fn parse(
        config: &FakeKubeConfig,
        kind: Kind,
        query: &HashMap<String, String>,
    ) -> Result<Self, Status> {
        let word = |name: &str| {
            query
                .get(name)
                .map(String::as_str)
                .filter(|word| !word.is_empty())
        };
        let flag = |name: &str| matches!(word(name), Some("true" | "1"));
        let number = |name: &str| -> Result<Option<u64>, Status> {
            let parsed = word(name).map(str::parse).transpose();
            parsed.map_err(|_| {
                let value = word(name).unwrap_or_default();
                Status::bad_request(&format!(
                    "strconv.ParseUint: parsing \"{value}\": invalid syntax ({name})"
                ))
            })
        };
        if word("labelSelector").is_some() {
            return Err(Status::bad_request("this server has no label selectors"));
        }
        let options = Self {
            watch: flag("watch"),
            selector: Selector::parse(kind, word("fieldSelector").unwrap_or_default())?,
            revision: number("resourceVersion")?,
            exact: false,
            limit: number("limit")?
                .filter(|limit| *limit > 0)
                .and_then(|limit| usize::try_from(limit).ok()),
            resume: word("continue").map(Resume::parse).transpose()?,
            bookmarks: flag("allowWatchBookmarks"),
            initial_events: flag("sendInitialEvents"),
            timeout_seconds: number("timeoutSeconds")?,
        };
        let matching = word("resourceVersionMatch");
        if options.watch {
            options.validate_watch(config, matching, word("sendInitialEvents").is_some())
        } else {
            options.validate_list(matching, word("sendInitialEvents").is_some())
        }
    }

    fn validate_list(mut self, matching: Option<&str>, initial: bool) -> Result<Self, Status> {
        if initial {
            return Err(forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        match matching {
            Some(_) if self.revision.is_none() => {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            Some(_) if self.resume.is_some() => {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            Some("Exact") if self.revision == Some(0) => {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            Some("Exact") => self.exact = true,
            Some("NotOlderThan") => {}
            Some(other) => return Err(unsupported_match(other)),
            // The old rule: a page of a given revision is exactly that revision's.
            None => {
                self.exact =
                    self.limit.is_some() && self.revision.is_some_and(|revision| revision > 0)
            }
        }
        if self.resume.is_some() && self.revision.is_some_and(|revision| revision > 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(self)
    }

    fn validate_watch(
        self,
        config: &FakeKubeConfig,
        matching: Option<&str>,
        initial: bool,
    ) -> Result<Self, Status> {
        if initial && matching != Some("NotOlderThan") {
            return Err(forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if initial && !config.watch_list {
            return Err(forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ));
        }
        if matching.is_some() && !initial {
            return Err(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if let Some(other) = matching.filter(|word| *word != "NotOlderThan") {
            return Err(unsupported_match(other));
        }
        if self.resume.is_some() {
            return Err(forbidden("continue", "continue is forbidden for watch"));
        }
        Ok(self)
    }
}

impl Resume {
    fn parse(token: &str) -> Result<Self, Status> {
        let invalid = || Status::bad_request("continue key is not valid: invalid encoding");
        let json = BASE64URL.decode(token).map_err(|_| invalid())?;
        let token: Value = serde_json::from_slice(&json).map_err(|_| invalid())?;
        let (namespace, name) = token["start"]
            .as_str()
            .and_then(|start| start.split_once('/'))
            .ok_or_else(invalid)?;
        let name = name.strip_suffix('\0').ok_or_else(invalid)?;
        let revision = match token["rv"].as_i64() {
            Some(-1) => None,
            revision => Some(
                revision
                    .and_then(|rv| u64::try_from(rv).ok())
                    .ok_or_else(invalid)?,
            ),
        };
        Ok(Self {
            revision,
            after: (namespace.to_owned(), name.to_owned()),
        })
    }

    fn token(&self) -> String {
        let revision = self
            .revision
            .and_then(|revision| i64::try_from(revision).ok())
            .unwrap_or(-1);
        let start = format!("{}/{}\0", self.after.0, self.after.1);
        BASE64URL.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
    }
}

fn forbidden(field: &str, message: &str) -> Status {
    let message = format!("Forbidden: {message}");
    Status::invalid(
        "meta.k8s.io",
        "ListOptions",
        field,
        "FieldValueForbidden",
        &message,
    )
}

fn unsupported_match(word: &str) -> Status {
    let message =
        format!("Unsupported value: \"{word}\": supported values: \"Exact\", \"NotOlderThan\"");
    Status::invalid(
        "meta.k8s.io",
        "ListOptions",
        "resourceVersionMatch",
        "FieldValueNotSupported",
        &message,
    )
}
