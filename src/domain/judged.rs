//! What a call answered about credentials that other services were shown:
//! whose they were, what was asked and what was said. Its record keeps it, and
//! never a credential (SE-42, SE-44).

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::Principal;

/// How many bytes of JSON the credentials of one call take at most. A hundred
/// usual ones fit in: no question keeps a credential out of the record.
const CREDENTIALS_BYTES_MAX: usize = 24 * 1024;
/// How many bytes of JSON the questions about them take at most.
const QUESTIONS_BYTES_MAX: usize = 4096;
/// How many bytes of one text of another's choice are kept.
const TEXT_BYTES_MAX: usize = 256;
/// What was said of a question that may.
const ALLOWED: &str = "allowed";

/// A question about a credential, with its answer.
#[derive(Clone, Debug, Serialize)]
pub struct Question {
    /// The permission; none where none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission: Option<Box<str>>,
    /// The namespace; none asks whether it holds anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Box<str>>,
    /// What was said: `allowed`, or why not.
    pub verdict: Cow<'static, str>,
}

impl Question {
    /// Of texts of another's choice.
    #[must_use]
    pub fn new(
        permission: Option<&str>,
        namespace: Option<&str>,
        verdict: impl Into<Cow<'static, str>>,
    ) -> Self {
        let text = |text: Option<&str>| text.map(|text| bounded(text).into());
        Self { permission: text(permission), namespace: text(namespace), verdict: verdict.into() }
    }

    /// Whether it may.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == ALLOWED
    }
}

/// A credential that was judged.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Whose it is, with what it held; none where it does not count.
    pub principal: Option<Arc<Principal>>,
    /// Its keyed fingerprint; none where there was none, or the audit is off.
    pub fingerprint: Option<Arc<str>>,
    /// The address of its client, where that was said.
    pub client: Option<IpAddr>,
    /// Whether it counts; none where it was not looked up.
    pub active: Option<bool>,
    /// What was asked about it.
    pub questions: Vec<Question>,
}

impl Serialize for Judged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(principal) = &self.principal {
            let Principal { identity, method, credential_id, .. } = &**principal;
            map.serialize_entry("source", identity.source.as_str())?;
            if !identity.issuer.is_empty() {
                map.serialize_entry("issuer", bounded(&identity.issuer))?;
            }
            map.serialize_entry("subject", bounded(&identity.subject))?;
            map.serialize_entry("method", method.as_str())?;
            map.serialize_entry("credential", &**credential_id)?;
        }
        if let Some(fingerprint) = &self.fingerprint {
            map.serialize_entry("fingerprint", &**fingerprint)?;
        }
        if let Some(client) = &self.client {
            map.serialize_entry("client", client)?;
        }
        if let Some(active) = &self.active {
            map.serialize_entry("active", active)?;
        }
        if !self.questions.is_empty() {
            map.serialize_entry("questions", &self.questions)?;
        }
        map.end()
    }
}

/// All that one call judged: the credentials, as many of the questions as there
/// is room for, and the number of the rest.
#[derive(Debug, Default)]
pub struct Judgement {
    about: Vec<Judged>,
    /// What the credentials take, and what the questions do.
    bytes: (usize, usize),
    allowed: usize,
    denied: usize,
    left_out: usize,
}

impl Judgement {
    /// Of a call about one credential.
    #[must_use]
    pub fn of(judged: Judged) -> Self {
        let mut all = Self::default();
        all.take(judged);
        all
    }

    /// Takes a credential up, with as many of its questions as there is room
    /// for.
    pub fn take(&mut self, judged: Judged) {
        let Judged { questions, .. } = judged;
        let allowed = questions.iter().filter(|question| question.is_allowed()).count();
        self.allowed += allowed;
        self.denied += questions.len() - allowed;
        let mut kept = Judged { questions: Vec::new(), ..judged };
        let asked = questions.len();
        let credentials = self.bytes.0 + length(&kept);
        if credentials > CREDENTIALS_BYTES_MAX {
            self.left_out += asked;
            return;
        }
        self.bytes.0 = credentials;
        for question in questions {
            let longer = self.bytes.1 + length(&question);
            if longer > QUESTIONS_BYTES_MAX {
                break;
            }
            self.bytes.1 = longer;
            kept.questions.push(question);
        }
        self.left_out += asked - kept.questions.len();
        self.about.push(kept);
    }

    /// The credentials, with the questions that there was room for.
    #[must_use]
    pub fn about(&self) -> &[Judged] {
        &self.about
    }

    /// What was asked, where that was one thing about one credential.
    #[must_use]
    pub fn only(&self) -> Option<(&Judged, &Question)> {
        match self.about.as_slice() {
            [judged] if self.left_out == 0 => match judged.questions.as_slice() {
                [question] => Some((judged, question)),
                _ => None,
            },
            _ => None,
        }
    }

    /// What its texts take, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.0 + self.bytes.1
    }
}

impl Serialize for Judgement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("judged", &self.about)?;
        if self.allowed + self.denied > 1 {
            map.serialize_entry("allowed", &self.allowed)?;
            map.serialize_entry("denied", &self.denied)?;
        }
        if self.left_out > 0 {
            map.serialize_entry("left_out", &self.left_out)?;
        }
        map.end()
    }
}

fn length(value: &impl Serialize) -> usize {
    // Strings and numbers alone: nothing in it can fail. With its comma.
    serde_json::to_string(value).map_or(CREDENTIALS_BYTES_MAX, |json| json.len() + 1)
}

/// The beginning of a text of another's choice.
fn bounded(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(questions: usize, name: &str) -> Judged {
        let question = |_| Question::new(Some(name), Some("shop"), "permission_missing");
        Judged {
            principal: Some(Arc::new(Principal::auth_off())),
            active: Some(true),
            questions: (0..questions).map(question).collect(),
            ..Judged::default()
        }
    }

    #[test]
    fn se_44_one_question_says_whose_credential_it_was_and_what_was_answered() {
        let one = Judgement::of(Judged {
            fingerprint: Some("0f3c".into()),
            questions: vec![Question::new(Some("bundles:read"), None, "allowed")],
            ..judged(0, "")
        });
        assert_eq!(
            serde_json::to_string(&one).unwrap(),
            "{\"judged\":[{\"source\":\"disabled\",\"subject\":\"anonymous\",\"method\":\"none\",\
             \"credential\":\"\",\"fingerprint\":\"0f3c\",\"active\":true,\
             \"questions\":[{\"permission\":\"bundles:read\",\"verdict\":\"allowed\"}]}]}"
        );
        assert!(one.only().is_some());
    }

    #[test]
    fn se_44_what_is_said_of_many_questions_is_bounded_and_counted() {
        let mut many = Judgement::default();
        for _ in 0..50 {
            many.take(judged(2, &"\u{1}".repeat(1_000)));
        }
        let json = serde_json::to_value(&many).unwrap();
        let most = CREDENTIALS_BYTES_MAX + QUESTIONS_BYTES_MAX + 100;
        assert!(json.to_string().len() < most, "{}", json.to_string().len());
        let kept: usize = many.about().iter().map(|one| one.questions.len()).sum();
        assert!(kept > 0);
        assert_eq!(many.about().len(), 50, "long questions keep no credential out");
        assert_eq!(json["left_out"], 100 - kept);
        assert_eq!((&json["allowed"], &json["denied"]), (&0.into(), &100.into()));
        assert!(many.only().is_none());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(bounded(&"é".repeat(200)).len(), 256);
        assert_eq!(bounded(&format!("a{}", "é".repeat(200))).len(), 255);
    }
}
