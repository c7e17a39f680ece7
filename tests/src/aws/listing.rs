//! `ListSecrets`: the names in an account and a region, by prefix, page by page.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::State;
use super::iam::Session;
use super::reply::{self, Refusal};
use super::secret::{Secret, Shelf};
use super::secretsmanager::{authorize, constraint, seconds};
use crate::fake::Reply;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct ListSecrets {
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    include_planned_deletion: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Filter {
    key: String,
    values: Vec<String>,
}

impl ListSecrets {
    pub(super) fn answer(
        &self,
        state: &State,
        session: &Session,
        region: &str,
    ) -> Result<Reply, Refusal> {
        let most = match self.max_results {
            None => 100,
            Some(1..=100) => usize::try_from(self.max_results.unwrap_or(100)).unwrap_or(100),
            Some(_) => return Err(constraint("maxResults", "value between 1 and 100")),
        };
        if self.filters.len() > 10 {
            return Err(constraint("filters", "length less than or equal to 10"));
        }
        if let Some(filter) = self.filters.iter().find(|filter| filter.key != "name") {
            return Err(constraint(
                &filter.key,
                "a filter key that this fake knows: name",
            ));
        }
        let after = match &self.next_token {
            None => None,
            Some(token) => Some(page_start(token).ok_or_else(|| {
                Refusal::new(
                    400,
                    "InvalidNextTokenException",
                    "The NextToken value is invalid.",
                )
            })?),
        };
        let context = [("aws:RequestedRegion", region)];
        authorize(
            state,
            session,
            "secretsmanager:ListSecrets",
            "*",
            None,
            &context,
        )?;

        let store = state.store.read();
        let none = Shelf::new();
        let shelf = store.shelf(&session.account, region).unwrap_or(&none);
        let most = most.min(state.page_limit());
        let mut page = Vec::with_capacity(most);
        let mut answer = Map::new();
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        for (name, secret) in shelf.range::<String, _>((from, std::ops::Bound::Unbounded)) {
            if !self.shows(secret) {
                continue;
            }
            if page.len() == most {
                let last = page.last().and_then(|entry: &Value| entry["Name"].as_str());
                answer.insert("NextToken".into(), page_token(last.unwrap_or(name)).into());
                break;
            }
            page.push(entry_json(secret));
        }
        answer.insert("SecretList".into(), page.into());
        Ok(reply::json(200, &Value::Object(answer)))
    }

    /// Values of one filter are alternatives, several filters must all hold; `!` negates.
    fn shows(&self, secret: &Secret) -> bool {
        (self.include_planned_deletion || secret.marked_for_deletion.is_none())
            && self.filters.iter().all(|filter| {
                filter
                    .values
                    .iter()
                    .any(|value| match value.strip_prefix('!') {
                        Some(prefix) => !secret.name.starts_with(prefix),
                        None => secret.name.starts_with(value.as_str()),
                    })
            })
    }
}

fn entry_json(secret: &Secret) -> Value {
    let staged = secret
        .versions
        .iter()
        .filter(|version| !version.stages.is_empty());
    let stages: Map<String, Value> = staged
        .map(|version| (version.id.clone(), json!(version.stages)))
        .collect();
    let mut entry = json!({
        "ARN": secret.arn,
        "CreatedDate": seconds(secret.created),
        "LastChangedDate": seconds(secret.changed),
        "Name": secret.name,
        "SecretVersionsToStages": stages,
        "Tags": [],
    });
    if let Some(marked) = secret.marked_for_deletion {
        entry["DeletedDate"] = json!(seconds(marked));
    }
    entry
}

fn page_token(after: &str) -> String {
    BASE64.encode(format!("after:{after}"))
}

fn page_start(token: &str) -> Option<String> {
    let text = String::from_utf8(BASE64.decode(token).ok()?).ok()?;
    text.strip_prefix("after:").map(str::to_owned)
}
