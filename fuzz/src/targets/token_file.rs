//! A text as a token file: what counts, what stays, and what changes leave
//! behind.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use bailiwick::{
    domain::{
        Timestamp,
        secret::{self, Secret},
    },
    storage::token_file::{TokenLine, line, parse},
};
use sha2::{Digest as _, Sha256};

pub fn run(data: &[u8]) {
    let foreign = BTreeSet::new();
    let document = parse(data, &foreign);
    assert_eq!(*document.serialise(), data, "not the same bytes again");

    // Every line is an aside, counts for nothing, or is one token.
    let faults: HashSet<usize> = document.faults().map(|(number, _)| number).collect();
    let counting =
        data.split_inclusive(|byte| *byte == b'\n').zip(1..).filter(|(bytes, number)| {
            let text = bytes.trim_ascii();
            !faults.contains(number) && !text.is_empty() && !text.starts_with(b"#")
        });
    let counting: Vec<&[u8]> = counting.map(|(bytes, _)| bytes).collect();
    let tokens: Vec<TokenLine> = document.tokens().cloned().collect();
    assert_eq!(counting.len(), tokens.len());
    for (bytes, token) in counting.iter().zip(&tokens) {
        counts_for_what_it_says(bytes, token);
    }
    let ids: HashSet<_> = tokens.iter().map(|token| &token.id).collect();
    let digests: HashSet<_> = tokens.iter().map(|token| token.digest).collect();
    assert!(ids.len() == tokens.len() && digests.len() == tokens.len(), "one token twice");

    // What is added counts, whatever stands there, and takes nothing along.
    let secret = Secret::new(u64::from_str_radix("zzzzzzzzzzz", 36).unwrap(), &[9; 32]);
    let new = line(secret.expose(), &["tasks:read".to_owned()], None, Timestamp::default());
    if !ids.contains(&secret.id()) {
        let added = document.with(&new);
        assert_eq!(added.len(), data.len() + new.len());
        let after = parse(&added, &foreign);
        let after: Vec<_> = after.tokens().collect();
        assert_eq!(after.len(), tokens.len() + 1);
        assert!(tokens.iter().all(|token| after.contains(&token)));
    }
    // What is removed or replaced is gone for good, and nothing else is.
    for token in tokens.iter().take(8) {
        let left = document.without(&[Arc::clone(&token.id)]).expect("it is there");
        gone(&left, &tokens, token, 0);
        let left = document.replaced(&token.id, b"").expect("it is there");
        gone(&left, &tokens, token, 0);
        if !ids.contains(&secret.id()) {
            gone(&document.replaced(&token.id, &new).unwrap(), &tokens, token, 1);
        }
    }
    assert!(document.without(&["no such id".into()]).is_none());
}

fn counts_for_what_it_says(bytes: &[u8], token: &TokenLine) {
    let text = std::str::from_utf8(bytes).expect("a token's line is text");
    let text = text.strip_suffix('\n').expect("a torn line counts for nothing");
    assert!(!text.contains(|letter: char| letter.is_control() && letter != '\t'));
    let mut columns = text.split('\t');
    let (secret, scopes) = (columns.next().unwrap(), columns.next());
    assert!(columns.count() <= 2, "a column that nobody knows");
    assert_eq!(token.digest, <[u8; 32]>::from(Sha256::digest(secret)));
    assert!(!secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic()));
    if secret.starts_with("bwk_") {
        assert_eq!(secret::id(secret), Some(&*token.id), "damaged, and counts");
        assert!(scopes.is_some(), "one of ours without scopes is root");
    } else {
        assert_eq!(token.id, secret::id_of_stranger(&token.digest));
    }
    assert_eq!(token.scopes.join(","), scopes.unwrap_or("*"), "another scope than written");
    assert!(!format!("{token:?}").contains(secret) || secret.len() < 16);
}

/// Read again, there are all the others and so many new ones.
fn gone(left: &[u8], before: &[TokenLine], token: &TokenLine, new: usize) {
    let foreign = BTreeSet::new();
    let after = parse(left, &foreign);
    let after: Vec<_> = after.tokens().collect();
    assert!(after.iter().all(|other| other.id != token.id), "its id is still there");
    assert_eq!(after.len(), before.len() - 1 + new);
    for other in before.iter().filter(|other| other.id != token.id) {
        assert!(after.contains(&other), "another one is gone");
    }
}
