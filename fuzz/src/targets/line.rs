//! Bytes as lines of the line protocol, and the whole as its auth file.

use std::{collections::HashSet, path::Path};

use bailiwick::{
    config::auth_file,
    domain::schedule::is_plain,
    line::{
        instruction::{Instruction, Line, Wrong, foreign, parse, secrets},
        words::{self, Words},
    },
};
use sha2::{Digest as _, Sha256};

pub fn run(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        read_as_line(line);
        if let Ok(text) = std::str::from_utf8(line) {
            read_as_words(text);
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        read_as_auth_file(text);
    }
}

fn read_as_line(line: &[u8]) {
    let _ = foreign(line);
    let text = line.strip_suffix(b"\r").unwrap_or(line);
    match parse(line) {
        Line::Auth(rest) => {
            assert!(text.starts_with(b"AUTH"));
            for secret in secrets(rest) {
                assert!(secret.len() <= rest.len(), "{secret:?}");
            }
        }
        // What is echoed is the line's first word and nothing else.
        Line::Instructed(id, instruction) => {
            assert!(text.starts_with(id.as_bytes()) && !id.is_empty());
            assert!(!id.contains(|letter: char| letter.is_control() || letter == ' '));
            holds_what_the_line_holds(text, &instruction);
        }
        Line::Wrong(id, wrong) => {
            assert!(text.starts_with(id.as_bytes()) && !id.is_empty());
            let _: Wrong = wrong;
        }
        Line::Malformed => {}
    }
}

/// No argument is longer than its line.
fn holds_what_the_line_holds(line: &[u8], instruction: &Instruction<'_>) {
    let bytes = match instruction {
        Instruction::Set(job, time) => job.len() + time.len(),
        Instruction::Schedule(job, recurrence, at) => {
            job.len() + recurrence.len() + at.as_ref().map_or(0, String::len)
        }
        Instruction::Get(word)
        | Instruction::Remove(word)
        | Instruction::Resume(word)
        | Instruction::History(word)
        | Instruction::Query(word)
        | Instruction::RemoveRule(word)
        | Instruction::ListRules(word) => word.len(),
        Instruction::RuleSet(id, pattern, _) => id.len() + pattern.len(),
        Instruction::Stat => 0,
    };
    assert!(bytes <= line.len());
}

/// Words that are read are read again as they are written, but for letters
/// that end a line or steer a terminal.
fn read_as_words(text: &str) {
    let Ok(all) = Words::new(text).all() else { return };
    let mut written = Vec::new();
    for word in &all {
        words::write(&mut written, word);
        written.push(b' ');
    }
    let written = String::from_utf8(written).unwrap();
    assert!(is_plain(&written), "{text:?}");
    let shown = |letter: char| {
        if is_plain(&letter.to_string()) { letter } else { char::REPLACEMENT_CHARACTER }
    };
    let all: Vec<String> = all.iter().map(|word| word.chars().map(shown).collect()).collect();
    assert_eq!(Words::new(&written).all().unwrap(), all, "{text:?}");
}

fn read_as_auth_file(text: &str) {
    let prefixes = ["rule.".to_owned()];
    let mut warnings = Vec::new();
    let tokens = match auth_file::parse(text, Path::new("auth.toml"), &prefixes, &mut warnings) {
        Ok(tokens) => tokens,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let names: HashSet<_> = tokens.iter().map(|token| &token.name).collect();
    let digests: HashSet<_> = tokens.iter().map(|token| token.digest).collect();
    assert!(!tokens.is_empty(), "nobody gets in");
    assert!(names.len() == tokens.len() && digests.len() == tokens.len(), "one token twice");
    for token in &tokens {
        assert_ne!(token.digest, <[u8; 32]>::from(Sha256::digest("")));
        // Everything only where it was written as such.
        let scope = token.scope.to_strings();
        assert!(scope.iter().all(|prefix| text.contains(prefix) || text.contains('\\')));
        assert!(scope.iter().all(|prefix| !prefix.is_empty() && !prefix.starts_with("rule.")));
    }
}
