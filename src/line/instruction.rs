//! What a line asks for: `<request id> <instruction> <arguments…>`.

use std::borrow::Cow;

use super::words::{Malformed, Words};
use crate::domain::{
    Namespace,
    schedule::{HttpMethod, RedisCommand, Runner, RunnerKind},
};

/// What begins a line of HTTP (SE-15).
const METHODS: &[&[u8]] = &[
    b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"PRI",
];
/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 22;

/// Whether a line belongs to another protocol: a browser that was led here, or
/// a client that wants TLS. Asked about beginnings of lines too.
#[must_use]
pub fn foreign(line: &[u8]) -> bool {
    if line.first() == Some(&HANDSHAKE) {
        return true;
    }
    let Some(end) = line.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
    else {
        return false;
    };
    let word = line.get(..end).unwrap_or_default();
    METHODS.contains(&word) || word.ends_with(b":")
}

/// A line that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// `AUTH …`, which has no request id.
    Auth(&'a str),
    /// An instruction.
    Instructed(&'a str, Instruction<'a>),
    /// An instruction that is wrong, and what is wrong with it.
    Wrong(&'a str, Wrong),
    /// Not even a request id.
    Malformed,
}

/// What is asked for. Texts are as they were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction<'a> {
    /// `SET <job> <time>`.
    Set(Cow<'a, str>, Cow<'a, str>),
    /// `SCHEDULE <job> <recurrence…> [AT <time>]`: ours.
    Schedule(Cow<'a, str>, String, Option<String>),
    /// `GET <job>`.
    Get(Cow<'a, str>),
    /// `REMOVE <job>`.
    Remove(Cow<'a, str>),
    /// `RESUME <job>`: ours.
    Resume(Cow<'a, str>),
    /// `HISTORY <job>`: ours.
    History(Cow<'a, str>),
    /// `QUERY [<beginning>]`.
    Query(Cow<'a, str>),
    /// `RULE SET <rule> <pattern> <runner> <arguments…>`.
    RuleSet(Cow<'a, str>, Cow<'a, str>, Runner),
    /// `REMOVERULE <rule>`.
    RemoveRule(Cow<'a, str>),
    /// `LISTRULES [<beginning>]`.
    ListRules(Cow<'a, str>),
    /// `STAT`.
    Stat,
}

impl Instruction<'_> {
    /// What it is about: a name, or how names begin.
    #[must_use]
    pub fn object(&self) -> &str {
        match self {
            Self::Set(name, _)
            | Self::Schedule(name, ..)
            | Self::Get(name)
            | Self::Remove(name)
            | Self::Resume(name)
            | Self::History(name)
            | Self::Query(name)
            | Self::RuleSet(name, ..)
            | Self::RemoveRule(name)
            | Self::ListRules(name) => name,
            Self::Stat => "",
        }
    }
}

/// What is wrong with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is no such instruction.
    UnknownCommand,
    /// Arguments are missing, too many, or cannot be read.
    Malformed,
    /// There is no such runner.
    UnknownRunner,
    /// The runner's arguments are wrong.
    InvalidRunner,
}

impl From<Malformed> for Wrong {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Reads a line without its end.
#[must_use]
pub fn parse(line: &[u8]) -> Line<'_> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Ok(text) = std::str::from_utf8(line) else {
        // What stands before the fault may still say who waits.
        let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
        let id = line.get(..end).and_then(|word| std::str::from_utf8(word).ok()).unwrap_or("");
        return request_id(id).map_or(Line::Malformed, |id| Line::Wrong(id, Wrong::Malformed));
    };
    if let Some(rest) = auth(text) {
        return Line::Auth(rest);
    }
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    let (id, rest) = text.split_at(end);
    let Some(id) = request_id(id) else { return Line::Malformed };
    match instruction(Words::new(rest)) {
        Ok(instruction) => Line::Instructed(id, instruction),
        Err(wrong) => Line::Wrong(id, wrong),
    }
}

/// What stands behind `AUTH`; none for another instruction.
fn auth(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("AUTH")?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(' ') }
}

/// What may be the secret in what stands behind `AUTH `: all of it, without
/// blanks around it, and what is in its quotes (ZT-11). None when there is
/// nothing.
#[must_use]
pub fn secrets(rest: &str) -> Vec<Cow<'_, str>> {
    let trimmed = rest.trim_matches([' ', '\t']);
    if trimmed.is_empty() {
        return Vec::new();
    }
    let mut secrets = vec![Cow::Borrowed(rest)];
    if trimmed.len() != rest.len() {
        secrets.push(Cow::Borrowed(trimmed));
    }
    let mut words = Words::new(trimmed);
    if trimmed.starts_with('"')
        && let Ok(Some(quoted)) = words.word()
        && words.rest().is_empty()
    {
        secrets.push(quoted);
    }
    secrets
}

/// It is echoed, so it must be what a client can read back.
fn request_id(word: &str) -> Option<&str> {
    (!word.is_empty() && !word.contains(|letter: char| letter.is_control() || letter == '"'))
        .then_some(word)
}

fn instruction(mut words: Words<'_>) -> Result<Instruction<'_>, Wrong> {
    let name = words.word()?.ok_or(Wrong::Malformed)?;
    let parsed = match &*name {
        "SET" => Instruction::Set(word(&mut words)?, time(&mut words)?),
        "GET" => Instruction::Get(word(&mut words)?),
        "REMOVE" => Instruction::Remove(word(&mut words)?),
        "RESUME" => Instruction::Resume(word(&mut words)?),
        "HISTORY" => Instruction::History(word(&mut words)?),
        "QUERY" => Instruction::Query(words.word()?.unwrap_or_default()),
        "LISTRULES" => Instruction::ListRules(words.word()?.unwrap_or_default()),
        "REMOVERULE" => Instruction::RemoveRule(word(&mut words)?),
        "STAT" => Instruction::Stat,
        "SCHEDULE" => return schedule(words),
        "RULE" => {
            return match words.word()?.as_deref() {
                Some("SET") => rule(words),
                Some(_) => Err(Wrong::UnknownCommand),
                None => Err(Wrong::Malformed),
            };
        }
        _ => return Err(Wrong::UnknownCommand),
    };
    // More than there should be was meant to say something.
    if words.word()?.is_some() { Err(Wrong::Malformed) } else { Ok(parsed) }
}

fn word<'a>(words: &mut Words<'a>) -> Result<Cow<'a, str>, Wrong> {
    words.word()?.ok_or(Wrong::Malformed)
}

/// A time of one word, or a date and a time of day.
fn time<'a>(words: &mut Words<'a>) -> Result<Cow<'a, str>, Wrong> {
    let date = word(words)?;
    Ok(match words.word()? {
        Some(clock) => Cow::Owned(format!("{date} {clock}")),
        None => date,
    })
}

fn schedule(mut words: Words<'_>) -> Result<Instruction<'_>, Wrong> {
    let job = word(&mut words)?;
    let rest = words.all()?;
    let mut parts = rest.splitn(2, |word| word == "AT");
    let recurrence = parts.next().unwrap_or_default().join(" ");
    let at = parts.next().map(|words| words.join(" "));
    if recurrence.is_empty() || at.as_ref().is_some_and(String::is_empty) {
        return Err(Wrong::Malformed);
    }
    Ok(Instruction::Schedule(job, recurrence, at))
}

fn rule(mut words: Words<'_>) -> Result<Instruction<'_>, Wrong> {
    let (id, pattern) = (word(&mut words)?, word(&mut words)?);
    let kind = RunnerKind::parse(&word(&mut words)?).ok_or(Wrong::UnknownRunner)?;
    let runner = runner(kind, words)?;
    Ok(Instruction::RuleSet(id, pattern, runner))
}

fn runner(kind: RunnerKind, words: Words<'_>) -> Result<Runner, Wrong> {
    if kind == RunnerKind::Shell {
        return shell(words);
    }
    let args = words.all()?;
    let texts: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    let owned = |args: &[&str]| args.iter().map(|arg| (*arg).into()).collect();
    let runner = match (kind, texts.as_slice()) {
        (RunnerKind::Direct, [executable, args @ ..]) => {
            Some(Runner::Direct { executable: (*executable).into(), args: owned(args) })
        }
        (RunnerKind::Awf, [workflow, args @ ..]) => {
            Some(Runner::Awf { workflow: (*workflow).into(), args: owned(args) })
        }
        (RunnerKind::Http, [method, url]) => {
            let method = HttpMethod::ALL.iter().find(|known| known.as_str() == *method);
            method.map(|method| Runner::Http { method: *method, url: (*url).into() })
        }
        (RunnerKind::Amqp, [dsn, exchange, key]) => Some(Runner::Amqp {
            dsn: (*dsn).into(),
            exchange: (*exchange).into(),
            routing_key: (*key).into(),
        }),
        (RunnerKind::Redis, [url, command, key]) => {
            let command = RedisCommand::ALL.iter().find(|known| known.as_str() == *command);
            command.map(|command| Runner::Redis {
                url: (*url).into(),
                command: *command,
                key: (*key).into(),
            })
        }
        (RunnerKind::Task, [target]) => task(target),
        (
            RunnerKind::Shell
            | RunnerKind::Direct
            | RunnerKind::Awf
            | RunnerKind::Http
            | RunnerKind::Amqp
            | RunnerKind::Redis
            | RunnerKind::Task,
            _,
        ) => None,
    };
    runner.ok_or(Wrong::InvalidRunner)
}

/// The rest of the line as it stands, or one word in quotes.
fn shell(words: Words<'_>) -> Result<Runner, Wrong> {
    let rest = words.rest();
    let mut single = words;
    let command = match single.word() {
        Ok(Some(word)) if rest.starts_with('"') && single.rest().is_empty() => word.into_owned(),
        Ok(_) | Err(Malformed) => rest.to_owned(),
    };
    if command.trim().is_empty() {
        return Err(Wrong::InvalidRunner);
    }
    Ok(Runner::Shell { command: command.into() })
}

/// `<namespace>/<template>[@version]`.
fn task(target: &str) -> Option<Runner> {
    let (namespace, template) = target.split_once('/')?;
    let (template, version) = match template.split_once('@') {
        Some((template, version)) => (template, Some(version)),
        None => (template, None),
    };
    let complete = !template.is_empty() && version != Some("");
    let namespace = Namespace::parse(namespace).ok().filter(|_| complete)?;
    Some(Runner::Task { namespace, template: template.into(), version: version.map(Into::into) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Instruction<'_> {
        let parsed = parse(line.as_bytes());
        let Line::Instructed("r1", instruction) = parsed else { panic!("{line}: {parsed:?}") };
        instruction
    }

    fn wrong(line: &str) -> Wrong {
        let parsed = parse(line.as_bytes());
        let Line::Wrong("r1", wrong) = parsed else { panic!("{line}: {parsed:?}") };
        wrong
    }

    #[test]
    fn zt_33_zt_43_instructions_have_an_id_and_arguments() {
        let set = |time: &'static str| Instruction::Set("a.b".into(), time.into());
        assert_eq!(one("r1 SET a.b 2026-04-01 12:00:00"), set("2026-04-01 12:00:00"));
        assert_eq!(one("r1 SET a.b \"2026-04-01 12:00:00\"\r"), set("2026-04-01 12:00:00"));
        assert_eq!(one("r1  SET  a.b 2026-04-01"), set("2026-04-01"));
        assert_eq!(one("r1 GET \"a b\""), Instruction::Get("a b".into()));
        assert_eq!(one("r1 QUERY"), Instruction::Query("".into()));
        assert_eq!(one("r1 QUERY deploy."), Instruction::Query("deploy.".into()));
        assert_eq!(one("r1 STAT"), Instruction::Stat);
        assert_eq!(
            one("r1 SCHEDULE a every 15m AT 2026-04-01 12:00:00"),
            Instruction::Schedule(
                "a".into(),
                "every 15m".to_owned(),
                Some("2026-04-01 12:00:00".to_owned())
            )
        );
        assert_eq!(
            one("r1 SCHEDULE a \"every 15m\""),
            Instruction::Schedule("a".into(), "every 15m".to_owned(), None)
        );
    }

    #[test]
    fn runners_have_their_arguments() {
        let runner = |rest: &str| {
            let line = format!("r1 RULE SET rule.a a. {rest}");
            let Instruction::RuleSet(id, pattern, runner) = one(&line) else { panic!("{line}") };
            assert_eq!((&*id, &*pattern), ("rule.a", "a."));
            runner
        };
        let shell = |command: &str| Runner::Shell { command: command.into() };
        assert!(runner("shell echo \"a  b\" >> /tmp/x") == shell("echo \"a  b\" >> /tmp/x"));
        assert!(runner(r#"shell "echo \"a b\"""#) == shell("echo \"a b\""));
        assert!(runner(r#"shell "/opt/a b" c"#) == shell(r#""/opt/a b" c"#));
        let direct = Runner::Direct { executable: "/bin/x".into(), args: vec!["a b".into()] };
        assert!(runner("direct /bin/x \"a b\"") == direct);
        let http = Runner::Http { method: HttpMethod::Post, url: "https://x/y".into() };
        assert!(runner("http POST https://x/y") == http);
        for good in ["amqp amqp://h ex key", "redis redis://h RPUSH k", "awf w --input k=v"] {
            assert_eq!(runner(good).kind().as_str(), good.split_once(' ').unwrap().0);
        }
        let target = |version: Option<&str>| Runner::Task {
            namespace: Namespace::parse("shop.eu").unwrap(),
            template: "order".into(),
            version: version.map(Into::into),
        };
        assert!(runner("task shop.eu/order") == target(None));
        assert!(runner("task shop.eu/order@1.0.0") == target(Some("1.0.0")));
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        for line in ["r1 set a 1", "r1 PING", "r1 AUTH x", "r1 RULE GET a"] {
            assert_eq!(wrong(line), Wrong::UnknownCommand, "{line}");
        }
        for line in [
            "r1",
            "r1 ",
            "r1 SET",
            "r1 SET a",
            "r1 SET a 2026-04-01 12:00:00 UTC",
            "r1 GET",
            "r1 GET a b",
            "r1 GET \"a",
            "r1 RULE",
            "r1 STAT x",
            "r1 RULE SET a b",
            "r1 SCHEDULE a",
            "r1 SCHEDULE a AT 1",
            "r1 SCHEDULE a every 1m AT",
        ] {
            assert_eq!(wrong(line), Wrong::Malformed, "{line}");
        }
        assert_eq!(wrong("r1 RULE SET a b bash x"), Wrong::UnknownRunner);
        for rest in
            ["shell", "direct", "http PATCH x", "http GET", "task x", "task a b/c", "amqp x"]
        {
            let line = format!("r1 RULE SET a b {rest}");
            assert_eq!(wrong(&line), Wrong::InvalidRunner, "{line}");
        }
        for line in [&b""[..], b" ", b"\r", b"\xff\xfe", b"r\x001 GET a", b"\"r1\" GET a"] {
            assert_eq!(parse(line), Line::Malformed, "{line:?}");
        }
        assert_eq!(parse(b"r1 GET \xff"), Line::Wrong("r1", Wrong::Malformed));
    }

    #[test]
    fn zt_11_a_secret_is_the_rest_of_the_line_or_in_quotes() {
        let of = |line: &'static str| {
            let Line::Auth(rest) = parse(line.as_bytes()) else { panic!("{line}") };
            secrets(rest)
        };
        assert_eq!(of("AUTH my secret"), ["my secret"]);
        assert_eq!(of("AUTH \"my secret\""), ["\"my secret\"", "my secret"]);
        assert_eq!(of(r#"AUTH "a\"b\\c""#), [r#""a\"b\\c""#, r#"a"b\c"#]);
        assert_eq!(of("AUTH  x "), [" x ", "x"]);
        assert_eq!(of("AUTH \"a\" b"), ["\"a\" b"]);
        for none in ["AUTH", "AUTH ", "AUTH   ", "AUTH\r"] {
            assert_eq!(of(none), Vec::<String>::new(), "{none}");
        }
        assert_eq!(parse(b"AUTHX GET a"), Line::Instructed("AUTHX", Instruction::Get("a".into())));
    }

    #[test]
    fn se_15_other_protocols_are_known_by_their_first_word() {
        for line in
            [&b"GET / HTTP/1.1"[..], b"POST /", b"PRI * HTTP/2.0", b"Host: x", b"x:\n", b"\x16\x03"]
        {
            assert!(foreign(line), "{line:?}");
        }
        for line in [&b"r1 GET a"[..], b"AUTH x", b"GE", b"GETX a", b"", b"a:b GET x", b"get a"] {
            assert!(!foreign(line), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_has_an_answer(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
            let _ = foreign(&line);
        }
    }
}
