//! `bailiwick auth can-i | who-can | why-denied`: asks a server about rights.

use serde::Serialize;

use super::{Connection, Error, Format, Result, output, view};
use crate::pb::v1 as pb;

/// A decision as it is shown.
#[derive(Serialize)]
struct Decision {
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_at: Option<String>,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    rpc: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Subject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<Rule>,
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    held: Vec<view::Grant>,
    held_now: bool,
    limits: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<Suggestion>,
    granters: Vec<Granter>,
    summary: String,
    complete: bool,
}

#[derive(Serialize)]
struct Subject {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    subject: String,
    method: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_id: Option<String>,
}

impl Subject {
    /// As one text, which `--as` takes again.
    fn text(&self) -> String {
        let issuer = self.issuer.as_ref().map(|issuer| format!("{issuer}#")).unwrap_or_default();
        format!("{}:{issuer}{}", self.source, self.subject)
    }
}

#[derive(Serialize)]
struct Rule {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    permission: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    text: String,
}

#[derive(Serialize)]
struct Suggestion {
    permission: String,
    namespaces: Vec<String>,
    assumed: bool,
    text: String,
}

#[derive(Serialize)]
struct Granter {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_id: Option<String>,
    text: String,
}

impl From<pb::Subject> for Subject {
    fn from(subject: pb::Subject) -> Self {
        let pb::Subject { source, issuer, subject, method, credential_id } = subject;
        Self { source, issuer, subject, method, credential_id }
    }
}

impl From<pb::ExplainDecisionResponse> for Decision {
    fn from(told: pb::ExplainDecisionResponse) -> Self {
        let granter = |one: pb::Granter| Granter {
            kind: one.kind,
            name: one.name,
            credential_id: one.credential_id,
            text: one.text,
        };
        Self {
            request_id: told.request_id,
            decided_at: view::times(told.decided_at.as_ref()),
            outcome: told.outcome,
            reason: told.reason,
            rpc: told.rpc,
            subject: told.subject.map(Into::into),
            rule: told.rule.map(|rule| Rule {
                kind: rule.kind,
                permission: rule.permission,
                mode: rule.mode,
                text: rule.text,
            }),
            namespaces: told.namespaces,
            object: told.object,
            held: told.held.into_iter().map(Into::into).collect(),
            held_now: told.held_now,
            limits: told.limits,
            suggestion: told.suggestion.map(|one| Suggestion {
                permission: one.permission,
                namespaces: one.namespaces,
                assumed: one.assumed,
                text: one.text,
            }),
            granters: told.granters.into_iter().map(granter).collect(),
            summary: told.summary,
            complete: told.complete,
        }
    }
}

impl Decision {
    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut row = |name: &str, text: String| {
            if !text.is_empty() {
                rows.push(vec![name.to_owned(), text]);
            }
        };
        row("outcome", self.outcome.clone());
        row("reason", self.reason.clone().unwrap_or_default());
        row("call", self.rpc.clone());
        row("at", self.decided_at.clone().unwrap_or_default());
        row("caller", self.subject.as_ref().map(Subject::text).unwrap_or_default());
        row("rule", self.rule.as_ref().map(|rule| rule.text.clone()).unwrap_or_default());
        row("where", self.namespaces.join(", "));
        row("object", self.object.clone().unwrap_or_default());
        let held = if self.held_now { "holds now" } else { "held" };
        for grant in &self.held {
            let places = grant.namespaces.join(", ");
            row(held, format!("{} in {places}", grant.permissions.join(", ")));
        }
        for limit in &self.limits {
            row("but", limit.clone());
        }
        row("would help", self.suggestion.as_ref().map(|one| one.text.clone()).unwrap_or_default());
        for granter in &self.granters {
            let name = granter.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            let id = granter.credential_id.as_ref().map(|id| format!(" ({id})"));
            let id = id.unwrap_or_default();
            row("can give it", format!("{}{name}{id}: {}", granter.kind, granter.text));
        }
        if !self.complete {
            row("not told", "the rest needs audit:read over the target".to_owned());
        }
        rows
    }
}

/// Explains a decision.
pub(super) async fn why_denied(
    request_id: String,
    connection: &Connection,
    format: Format,
) -> Result {
    let client = connection.client().await?;
    let request = pb::ExplainDecisionRequest { request_id };
    let told: Decision = client.access().explain_decision(request).await?.into_inner().into();
    if format == Format::Json {
        return output::json(&told);
    }
    output::line(output::word(&told.summary))?;
    output::line("")?;
    output::pairs(&told.rows())
}

/// Permissions, and behind them a namespace: a permission has a colon.
fn split(mut words: Vec<String>) -> (Vec<String>, Option<String>) {
    let is_place = |word: &String| !word.contains(':') && word != "*";
    let place = if words.len() > 1 { words.pop_if(|word| is_place(word)) } else { None };
    (words, place)
}

/// Permissions and a namespace, as words or by its flag.
pub(super) fn actions(
    words: Vec<String>,
    namespace: Option<String>,
) -> Result<(Vec<String>, Option<String>)> {
    let (permissions, place) = split(words);
    match (namespace, place) {
        (Some(_), Some(_)) => Err(Error::Usage("the namespace is given twice".to_owned())),
        (namespace, place) => Ok((permissions, namespace.or(place))),
    }
}

/// Asks whether the caller may do something.
pub(super) async fn can_i(
    words: Vec<String>,
    namespace: Option<String>,
    as_subject: Option<String>,
    connection: &Connection,
    format: Format,
) -> Result {
    #[derive(Serialize)]
    struct Answer {
        permission: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        allowed: bool,
    }
    let (permissions, namespace) = actions(words, namespace)?;
    let client = connection.client().await?;
    let action = |permission| pb::Action { permission, namespace: namespace.clone() };
    let actions = permissions.into_iter().map(action).collect();
    let request = pb::CanIRequest { actions, as_subject };
    let pb::CanIResponse { answers, last_seen_at } =
        client.access().can_i(request).await?.into_inner();
    let last_seen_at = view::times(last_seen_at.as_ref());
    let answers: Vec<Answer> = answers
        .into_iter()
        .map(|answer| Answer {
            permission: answer.permission,
            namespace: answer.namespace,
            allowed: answer.allowed,
        })
        .collect();
    let denied: Vec<&str> = answers
        .iter()
        .filter(|answer| !answer.allowed)
        .map(|answer| answer.permission.as_str())
        .collect();
    let outcome = if denied.is_empty() {
        Ok(())
    } else {
        Err(Error::Failed(format!("not allowed: {}", denied.join(", "))))
    };
    match format {
        Format::Json => match &last_seen_at {
            Some(at) => {
                output::json(&serde_json::json!({ "answers": answers, "last_seen_at": at }))?;
            }
            None => output::json(&serde_json::json!({ "answers": answers }))?,
        },
        Format::Table => {
            let rows: Vec<Vec<String>> = answers
                .iter()
                .map(|answer| {
                    let allowed = if answer.allowed { "yes" } else { "no" };
                    let namespace =
                        answer.namespace.clone().unwrap_or_else(|| "anywhere".to_owned());
                    vec![answer.permission.clone(), namespace, allowed.to_owned()]
                })
                .collect();
            output::table(&["PERMISSION", "NAMESPACE", "ALLOWED"], &rows)?;
            if let Some(at) = last_seen_at {
                output::line(format!("by the claims of its token of {at}"))?;
            }
        }
    }
    outcome
}

/// Lists who could do something.
pub(super) async fn who_can(
    permission: String,
    namespace: String,
    connection: &Connection,
    format: Format,
) -> Result {
    #[derive(Serialize)]
    struct Able {
        kind: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        subject: Option<Subject>,
        text: String,
    }
    let client = connection.client().await?;
    let request = pb::WhoCanRequest { permission, namespace };
    let pb::WhoCanResponse { credentials, left_out, roles } =
        client.access().who_can(request).await?.into_inner();
    let able = credentials.into_iter().map(|one| Able {
        kind: one.kind,
        name: one.name,
        subject: one.subject.map(Into::into),
        text: one.text,
    });
    let able: Vec<Able> = able.collect();
    if format == Format::Json {
        return output::json(&serde_json::json!({
            "credentials": able, "left_out": left_out, "roles": roles,
        }));
    }
    let row = |one: &Able| {
        let id = one.subject.as_ref().and_then(|subject| subject.credential_id.clone());
        vec![
            one.kind.clone(),
            one.name.clone().unwrap_or_default(),
            id.unwrap_or_default(),
            one.text.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = able.iter().map(row).collect();
    output::table(&["KIND", "NAME", "ID", "HOW"], &rows)?;
    if left_out > 0 {
        output::note(format!("and {left_out} more"));
    }
    if !roles.is_empty() {
        output::line(format!("\nroles that hold it: {}", output::word(&roles.join(", "))))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_stands_behind_permissions() {
        let words = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let split = |texts: &[&str]| {
            let (permissions, place) = split(words(texts));
            (permissions.join(" "), place)
        };
        assert_eq!(split(&["tasks:create"]), ("tasks:create".to_owned(), None));
        assert_eq!(
            split(&["tasks:create", "shop"]),
            ("tasks:create".to_owned(), Some("shop".to_owned()))
        );
        assert_eq!(split(&["a:b", "c:d"]), ("a:b c:d".to_owned(), None));
        assert_eq!(split(&["nonsense"]), ("nonsense".to_owned(), None));
    }
}
