//! Finds secrets in bytes of any kind, a window at a time.

use std::io::{self, Read};

use zeroize::Zeroizing;

use crate::domain::secret::{self, LENGTH};

/// How much is in memory at a time.
const WINDOW_BYTES: usize = 256 * 1024;
const PREFIX: &[u8] = b"bwk_";
/// Between them stands the public id.
const ID_BEGINS: usize = 4;
const ID_ENDS: usize = 16;

/// What is where it should not be.
pub(super) enum Hit {
    /// A secret whose checksum fits.
    Secret {
        /// All of it.
        text: Zeroizing<String>,
        /// Line and column in bytes, both from 1.
        position: (u64, u64),
    },
    /// Of the form, but the checksum does not fit.
    Lookalike,
}

/// Where a walk through the bytes stands.
#[derive(Clone, Copy)]
struct Position {
    line: u64,
    column: u64,
}

impl Position {
    fn pass(&mut self, bytes: &[u8]) {
        let long = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let breaks: u64 = bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum();
        match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => {
                self.line += breaks;
                self.column = long(bytes.len() - last);
            }
            None => self.column += long(bytes.len()),
        }
    }
}

/// Searches a source to its end, in memory that does not grow with it.
pub(super) fn search(source: &mut impl Read, hit: &mut impl FnMut(Hit)) -> io::Result<()> {
    let mut window = Zeroizing::new(vec![0; WINDOW_BYTES]);
    let mut filled = 0;
    let mut position = Position { line: 1, column: 1 };
    loop {
        let room = window.get_mut(filled..).unwrap_or_default();
        match source.read(room) {
            Ok(0) => return Ok(()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        // What begins after this may go on in the next window.
        let done = (filled + 1).saturating_sub(LENGTH);
        let bytes = window.get(..filled).unwrap_or_default();
        let mut passed = 0;
        for start in (Starts { bytes, at: 0 }) {
            let Some(candidate) = bytes.get(start..start + LENGTH) else { break };
            if !has_form(candidate) {
                continue;
            }
            position.pass(bytes.get(passed..start).unwrap_or_default());
            passed = start;
            hit(match std::str::from_utf8(candidate) {
                Ok(text) if secret::id(text).is_some() => Hit::Secret {
                    text: Zeroizing::new(text.to_owned()),
                    position: (position.line, position.column),
                },
                Ok(_) | Err(_) => Hit::Lookalike,
            });
        }
        position.pass(bytes.get(passed..done).unwrap_or_default());
        window.copy_within(done..filled, 0);
        filled -= done;
    }
}

/// The pattern of [`secret::PATTERN`].
fn has_form(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(place, byte)| match place {
        0..ID_BEGINS => PREFIX.get(place) == Some(byte),
        ID_BEGINS..ID_ENDS => matches!(byte, b'0'..=b'9' | b'a'..=b'z'),
        ID_ENDS => *byte == b'_',
        17..60 => byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'),
        _ => byte.is_ascii_alphanumeric(),
    })
}

/// Where the prefix stands; looks at about one byte in four.
struct Starts<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Iterator for Starts<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            let start = self.at;
            match self.bytes.get(start + 3)? {
                b'_' => {
                    self.at += 4;
                    if self.bytes.get(start..start + 4) == Some(PREFIX) {
                        return Some(start);
                    }
                }
                b'k' => self.at += 1,
                b'w' => self.at += 2,
                b'b' => self.at += 3,
                _ => self.at += 4,
            }
        }
    }
}

/// Text without the secrets that stand in it; their public ids stay.
pub(super) fn redacted(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut passed = 0;
    for start in (Starts { bytes: text, at: 0 }) {
        let fits = text.get(start..start + LENGTH).is_some_and(has_form);
        if start >= passed && fits {
            out.extend_from_slice(text.get(passed..=start + ID_ENDS).unwrap_or_default());
            out.extend_from_slice("…".as_bytes());
            passed = start + LENGTH;
        }
    }
    out.extend_from_slice(text.get(passed..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::secret::Secret;

    /// Gives a few bytes at a time.
    struct Drops<'b>(&'b [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let most = self.1.min(room.len());
            self.0.read(room.get_mut(..most).unwrap())
        }
    }

    type Found = Vec<(String, (u64, u64))>;

    fn hits(mut source: impl Read) -> (Found, usize) {
        let (mut found, mut lookalikes) = (Vec::new(), 0);
        search(&mut source, &mut |hit| match hit {
            Hit::Secret { text, position } => found.push((text.to_string(), position)),
            Hit::Lookalike => lookalikes += 1,
        })
        .unwrap();
        (found, lookalikes)
    }

    #[test]
    fn secrets_are_found_between_any_bytes() {
        let secret = Secret::new(7, &[0xab; 32]);
        let text = secret.expose();
        let (found, lookalikes) = hits(format!("\n\0bwk_b{text}{text}\n\n x").as_bytes());
        let places = [(2, 7), (2, 7 + 66)];
        assert_eq!(found, places.map(|place| (text.to_owned(), place)));
        assert_eq!(lookalikes, 0);
        let wrong = text.replacen("000000000007", "000000000008", 1);
        assert_eq!(hits(wrong.as_bytes()), (vec![], 1));
        for none in ["", "bwk_", &text[..65], &text[1..], &text.to_uppercase()] {
            assert_eq!(hits(none.as_bytes()), (vec![], 0), "{none}");
        }
    }

    #[test]
    fn the_edge_of_a_window_hides_nothing() {
        let secret = Secret::new(1, &[3; 32]);
        for before in WINDOW_BYTES - 70..WINDOW_BYTES + 3 {
            let text = format!("{}{}", "b".repeat(before), secret.expose());
            let column = u64::try_from(before).unwrap() + 1;
            let (found, _) = hits(text.as_bytes());
            assert_eq!(found, [(secret.expose().to_owned(), (1, column))]);
        }
    }

    #[test]
    fn dk_47_a_text_is_shown_without_the_secrets_in_it() {
        let secret = Secret::new(7, &[0xab; 32]);
        let text = format!("a/{0}x{0}.txt", secret.expose());
        let shown = String::from_utf8(redacted(text.as_bytes())).unwrap();
        assert_eq!(shown, "a/bwk_000000000007_…xbwk_000000000007_….txt");
        assert_eq!(redacted(b"bwk_plain"), b"bwk_plain");
    }

    proptest! {
        #[test]
        fn every_secret_is_found_however_the_bytes_come(
            parts in proptest::collection::vec(("[bwk_\n]{0,9}", any::<u64>(), any::<[u8; 32]>()), 0..5),
            step in 1_usize..200,
        ) {
            let (mut text, mut wanted) = (String::new(), Vec::new());
            for (noise, id, bytes) in parts {
                text.push_str(&noise);
                let secret = Secret::new(id, &bytes).expose().to_owned();
                let line = text.matches('\n').count() + 1;
                let column = text.len() - text.rfind('\n').map_or(0, |last| last + 1) + 1;
                text.push_str(&secret);
                let long = |number: usize| u64::try_from(number).unwrap();
                wanted.push((secret, (long(line), long(column))));
            }
            let (found, _) = hits(Drops(text.as_bytes(), step));
            prop_assert_eq!(found, wanted);
        }
    }
}
